r"""Final answers of completions: where they stand, and where they end."""

import re
from itertools import pairwise

_REMARK = re.compile(
    r"(?:(?<=[.!?:])|(?<=\n)|^)\s*(?:please |do |just )?(?:let me know|i hope|hope|feel free"
    r"|ask me|thank|please|if you have|if you need|is there anything)\b[^\n]*$",
    re.IGNORECASE,
)
_NEXT_QUESTION = re.compile(
    r"\n\s*(?:#+ ?)?(?:(?:next )?(?:question|problem|instruction|input|user|human|q)"
    r"(?: \d+)?\s*[:.]"
    r"|### ?(?:question|problem|instruction|input))",
    re.IGNORECASE,
)
_MARK = re.compile(
    r"####|<answer>|\banswers?\*{0,2}\s*"
    r"(?:(?:is|are|was|would be|should be|must be|will be|:|=)\*{0,2}\s*)+:?"
    r"|\b(?:answer|(?:correct|right|best|true)\s+(?:option|choice|statement))\b[^.:=\n]{0,40}?"
    r"\b(?:is|are|was|be)\b\s*:?",
    re.IGNORECASE,
)
_WEAK_MARK = re.compile(
    r"\b(?:results?|solutions?|final value|total)\s*(?::|=|\bis\b|\bare\b)\s*:?", re.IGNORECASE
)
_NOT_ANNOUNCED = re.compile(
    r"(?:let me know|hope|please|ask me|whether|\bif(?: this| that| the| my)?)[^.!?\n]*$|\bno\s*$",
    re.IGNORECASE,
)
_LETTER = r"\(?\s?([A-J])\s?\)?"
_BARE_CHOICE = re.compile(
    r"\b(?:answer|ans|option|choice)(?:\s{0,3}[:-])?\s{1,3}(?:option\s{1,3})?\(?\s?([A-J])\s?\)?$",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    rf"(?i:\b(?:option|choice|answer) {{1,3}}{_LETTER} {{1,3}}(?:is|must be) "
    rf"(?:the )?(?:correct|right|best|answer))"
    rf"|(?:^|[.\s])(?:\(([A-J])\)|([A-J])|(?<=\s)([b-e])) is (?:the )?(?:correct|right|best|answer)"
    rf"|\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore|[Ii]t is|[Ii]t's|must be|choose|pick|select)"
    rf",? (?:it is |it must be |option |choice )?"
    rf"(?:\(\s?([A-J])\s?\)(?=[\s.,;:]|$)|([A-J])(?=[.,;:]|$))"
)
_LEADING_CHOICE = re.compile(
    r"\(?([A-J])(?:\)?,? (?:because|since|as|for)\b|\),|,\s(?=[a-z]+ [A-Za-z]+ ))"
)
_CLOSING_CHOICE = re.compile(r"(?:^|\s)\(\s?([A-J])\s?\)$", re.IGNORECASE)
_CLOSING_LETTER = re.compile(r"(?:[\w%.,;)]|=>) (?:so |hence |option )?([a-e])(?: ?\))?$")
_CHOICE_AND_TEXT = re.compile(r"(?:\(\s?[A-J]\s?\)|[A-J]\s?\)|[A-J][.:](?=\s+\S))", re.IGNORECASE)
_YES_OR_NO = re.compile(
    r"\W{0,3}(yes|no|true|false)\b(?:\W*$|[.,;:!]| because | since )", re.IGNORECASE
)
_IS_TRUE = re.compile(
    r"\b(?:is|are|answer:?) (?:indeed |therefore )?(yes|no|true|false)\W*$", re.IGNORECASE
)

_DIGITS = r"(?:[0-9]{1,3}(?:(?:,|\{,\}|\\,|\\!)[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}.])[-\u2212])?(?:\\[dtc]?frac\{{[^{{}}]{{1,40}}\}}\{{[^{{}}]{{1,40}}\}}"
    rf"|[0-9]{{1,2}}:[0-9]{{2}}(?:\s?[ap]\.?m\b\.?)?"
    rf"|(?:{_DIGITS})(?:\s?/\s?[0-9]+)?"
    rf"(?:\s?\\?%|[ -](?:dozen|hundred|thousand|million|billion|trillion|percent"
    rf"|(?:third|quarter|fourth|fifth|sixth|eighth|tenth)s?)\b)?)",
    re.IGNORECASE,
)
_PAIR = re.compile(
    r"(?<![\w])(?:\\?\{|[(\[])(?:[-+\w\s./\\^*]{1,40},){1,9}[-+\w\s./\\^*]{1,40}(?:\\?\}|[)\]])(?!\w)"
)
_MATHS = re.compile(
    r"(?<!\\)\$\$?([^\s$][^$\n]{0,200}?)(?<!\s)\$\$?|\\\((.{1,200}?)\\\)|\\\[(.{1,200}?)\\\]"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_VERB = re.compile(
    r"\b(?:is|are|was|were|be|has|have|had|gives?|makes?|gets?|costs?|takes?|leaves?|needs?|will|can)\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r",?\s+(?:because|since|given that|so that)\s.*$"
    r"|,\s*(?:which|as|where|who|i think|i believe|i am|but|and so)\s.*$"
    r"|\s+i (?:think|believe|guess)\b.*$|\s*\((?:not|i\.e\.|that is|or|since|because)\s.*$",
    re.IGNORECASE | re.DOTALL,
)
_VAGUE = re.compile(
    r"\b(?:between|either|(?:more|less|fewer|greater) than|at least|at most|not|or|up to|from)\b",
    re.IGNORECASE,
)
_INTRODUCTION = re.compile(
    r"^(?:(?:so|thus|hence|therefore|then|finally|and|we (?:get|have|find)|this (?:gives|means)"
    r"|it follows that|either|the answer is)\b,?:?\s*)+",
    re.IGNORECASE,
)


def extract(text: str) -> str | None:
    r"""Return the final answer in `text` as it is written; None for a text without content.

    The answer is the first of these that exists: the last complete \boxed{...}, with those that
    `and`, `or` or a comma joins to it; the text after the last "answer is", "answer:" or "####";
    the letter of a multiple choice; yes or no; an expression that makes up the last line; the last
    formula or number; the last line. Text from the next question on, and remarks after the answer,
    are left out.
    """
    text = _own_words(text)
    for rule in (_boxed, _announced, _lettered, _affirmed, _expression, _last_value, _last_line):
        answer = rule(text)
        if answer:
            return answer
    return None


def stated(text: str) -> str | None:
    """Return the answer that `text` boxes or announces; None for one that does neither."""
    text = _own_words(text)
    return _boxed(text) or _announced(text)


def _own_words(text: str) -> str:
    """Return the part of a completion that answers: no thoughts, next question, or remarks."""
    text = text.rpartition("</think>")[2].strip()
    question = _NEXT_QUESTION.search(text)
    if question and question.start() and "boxed" not in text[question.start() :]:
        text = text[: question.start()].rstrip()
    while remark := _REMARK.search(text):
        if not remark.start():
            break
        text = text[: remark.start()].rstrip()
    return text


def _boxed(text: str) -> str | None:
    """Return what the last box holds, and the boxes that are joined to it."""
    boxes = []
    closing = _closing_braces(text)
    for box in re.finditer(r"\\f?box(?:ed)?\s?(?:\{|([0-9]+|[A-Za-z]))", text):
        if box[1]:
            boxes.append((box.start(), box.end(), box[1]))
        elif box.end() - 1 in closing:
            end = closing[box.end() - 1]
            content = text[box.end() : end].strip()
            if content and not re.match(r"\\f?box", content):
                boxes.append((box.start(), end + 1, content))
    if not boxes:
        return None
    joined = [boxes[-1][2]]
    for left, right in reversed(list(pairwise(boxes))):
        if not _JOINT.fullmatch(text[left[1] : right[0]]):
            break
        joined.insert(0, left[2])
    return ", ".join(joined)


_JOINT = re.compile(
    r"[\s$]*(?:,|;|,?\s*\b(?:and|or)\b|\\text\{ ?(?:and|or) ?\})[\s$]*(?:[A-Za-z]\w?\s*=\s*)?"
)


def _closing_braces(text: str) -> dict[int, int]:
    """Map the position of each closed opening brace of `text` to that of its closing brace."""
    closing: dict[int, int] = {}
    unclosed: list[int] = []
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if brace[0] == "{":
            unclosed.append(brace.start())
        elif brace[0] == "}" and unclosed:
            closing[unclosed.pop()] = brace.start()
    return closing


def _announced(text: str) -> str | None:
    """Return the text after the last announcement, up to the end of its line or sentence."""
    bare = _BARE_CHOICE.search(text.rstrip(" .*"))
    if bare:
        return bare[1]
    for mark in reversed(list(_MARK.finditer(text))):
        if not _NOT_ANNOUNCED.search(text[max(0, mark.start() - 80) : mark.start()]):
            answer = _statement(text[mark.end() :])
            if answer:
                return answer
    last = _last_sentence(text)
    weak = list(_WEAK_MARK.finditer(last))
    return _statement(last[weak[-1].end() :]) if weak else None


def _statement(text: str) -> str:
    line = text.strip(" \t\r\n*`").partition("\n")[0].partition("</answer>")[0]
    sentence = _sentences(line)[0] if line else ""
    if _CHOICE_AND_TEXT.match(line):
        return _undelimited(_CLAUSE.sub("", line if len(line) < 100 else line[:2].strip("(") + ")"))
    sentence = _CLAUSE.sub("", sentence)
    closing = _CLOSING_CHOICE.search(sentence.rstrip(" ."))
    if closing:
        return closing[1]
    return _without_prose(_undelimited(sentence))


def _sentences(text: str) -> list[str]:
    """Split a line at full stops that end a sentence, not at those of Rs. 5 or 3 p.m."""
    return [
        sentence
        for sentence in re.split(
            r"(?<!\bRs)(?<!\b[ap]\.m)(?<!\bapprox)(?<!^[A-J])[.!?]+(?:\s+|$)", text
        )
        if sentence
    ] or [""]


def _undelimited(text: str) -> str:
    """Return `text` without emphasis, quotation marks, and the dollars around a formula."""
    text = text.strip(" \t*`\"'").rstrip(" .,;:*")
    formula = re.fullmatch(r"\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]", text)
    return next(part for part in formula.groups() if part).strip() if formula else text


def _without_prose(statement: str) -> str:
    """Return the first number of a sentence, a calculation's result, or the whole statement."""
    number = _NUMBER.search(statement)
    if number and len(_WORD.findall(statement)) > 4 and not _VAGUE.search(statement):
        return number[0]
    first = re.match(r"([^,]*\d[^,]*), [a-z]+ [a-z]+ ", statement)
    return _result(first[1] if first and not _VAGUE.search(statement) else statement)


def _result(statement: str) -> str:
    """Return the 7 of `3 + 4 = 7`, and the `x = 7` of `x = 3 + 4 = 7`."""
    parts = [part.strip() for part in re.split(r"(?<![<>!\\])=", statement)]
    if len(parts) < 2 or not _NUMBER.fullmatch(parts[-1].strip("$ ")):
        return statement
    if re.search(r"[,;]\s|\b(?:and|or)\b", statement):
        return statement
    name = parts[0].split()[-1] if parts[0] else ""
    if not re.search(r"[-+*/^\d<>]", parts[0]) and re.fullmatch(
        r"\$?(?:[A-Za-z](?:_\w)?|\\[a-z]+)", name
    ):
        return f"{name.strip('$')} = {parts[-1]}"
    has_unknown = re.search(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])", parts[-2])
    return statement if has_unknown and len(parts) == 2 else parts[-1]


def _lettered(text: str) -> str | None:
    """Return the letter that the last line names, or with which the text begins."""
    line = _last_line(text).strip(" .*$")
    if _CHOICE_AND_TEXT.match(line):
        return line
    closing = _CLOSING_CHOICE.search(line) or (len(line) > 40 and _CLOSING_LETTER.search(line))
    if closing:
        return closing[1]
    chosen = list(_CHOSEN.finditer(text))
    if chosen:
        return next(letter for letter in chosen[-1].groups() if letter)
    if re.match(r"[A-J] - [A-Za-z]{2}", text) and "\n" not in text:
        return text
    leading = _LEADING_CHOICE.match(text)
    return leading[1] if leading else None


def _affirmed(text: str) -> str | None:
    found = _YES_OR_NO.match(text) or _IS_TRUE.search(_last_sentence(text))
    return found[1] if found else None


def _expression(text: str) -> str | None:
    r"""Return the last line if it has no words but `and` and `or` (a \command is no word)."""
    line = _undelimited(_INTRODUCTION.sub("", _last_line(text)))
    if "\n" in text and not _INTRODUCTION.match(_last_line(text)):
        return None
    bare = re.sub(
        r"\\(?:begin|end)\s?\{\w+\}|\\(?:text|mathrm|operatorname)\s?\{[^{}]*\}", "", line
    )
    words = [word for word in _WORD.findall(bare) if not _CONNECTIVE.fullmatch(word)]
    if not words and re.search(r"\w", line) and len(_sentences(line)) == 1:
        return _result(line)
    is_fragment = _NUMBER.match(line) or re.match(r"[A-J](?:,| and | or ) ?[A-J]\b", line)
    if is_fragment and len(words) <= 5 and not _VERB.search(line) and len(_sentences(line)) == 1:
        return _result(_CLAUSE.sub("", line))
    return None


_CONNECTIVE = re.compile("and|or|pi|sqrt|sin|cos|tan|log|ln|infinity", re.IGNORECASE)


def _last_value(text: str) -> str | None:
    """Return the last formula of the last sentence with one, or the last number."""
    for sentence in reversed(_sentences(text)):
        maths = [match for match in _MATHS.finditer(sentence) if _is_formula(_inside(match))]
        values = [*maths, *_PAIR.finditer(sentence), *_NUMBER.finditer(sentence)]
        if values:
            last = max(values, key=lambda match: (match.end(), -match.start()))
            return _result(_inside(last)) if last in maths else last[0].strip()
    return None


def _inside(formula: re.Match[str]) -> str:
    return next(part for part in formula.groups() if part).strip()


def _is_formula(text: str) -> bool:
    return not _WORD.search(re.sub(r"\\text\{[^{}]*\}", "", text)) and not re.search(
        r"[-+*/=,]$", text
    )


def _last_line(text: str) -> str:
    return text.rpartition("\n")[2].strip()


def _last_sentence(text: str) -> str:
    return _sentences(_last_line(text))[-1].strip()
