// Returns pairs of texts that lie over each other; 5 pixels is less than leading takes.
() => {
  // Lines of one text may touch; those of two may not.
  const parts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    const hidden = "script, style, noscript, option, .unseen, .skip, nav";
    if (!node.textContent.trim() || parent.closest(hidden)) continue;
    if (!parent.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      const clip = parent.closest(".scroll, .plot, .card")?.getBoundingClientRect();
      const left = Math.max(box.left, clip?.left ?? -1e9);
      const right = Math.min(box.right, clip?.right ?? 1e9);
      if (right - left < 2 || box.height < 2) continue;
      parts.push({ left, right, top: box.top, bottom: box.bottom, node, text: node.textContent.trim() });
    }
  }
  parts.sort((a, b) => a.top - b.top);
  const found = [];
  parts.forEach((a, i) => {
    for (let j = i + 1; j < parts.length && parts[j].top < a.bottom; j++) {
      const b = parts[j];
      if (a.node === b.node) continue;
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 2 && high > 5) found.push([a.text.slice(0, 40), b.text.slice(0, 40)]);
    }
  });
  return found;
}
