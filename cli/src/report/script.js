// Tips at once, by pointer, touch or keyboard, in place of the browser's own slow ones.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("svg title")) {
  const mark = title.parentElement;
  mark.dataset.tip = title.textContent;
  mark.setAttribute("aria-label", title.textContent);
  title.remove();
}
function show(target, x, y) {
  const mark = target && target.closest && target.closest("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - box.width - 4)) + "px";
  tip.style.top = (y + 16 + box.height < innerHeight ? y + 16 : y - box.height - 8) + "px";
}
addEventListener("pointermove", e => show(e.target, e.clientX, e.clientY));
addEventListener("pointerdown", e => show(e.target, e.clientX, e.clientY));
