"""The names of the trainers that rows can be exported for."""

NAMES = ("trl", "axolotl", "llamafactory", "open-instruct", "torchtune", "verl")
