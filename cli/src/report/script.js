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

// Tables that go on beyond their edge say so.
const sized = new ResizeObserver(all => {
  for (const { target } of all) target.classList.toggle("more", target.scrollWidth > target.clientWidth + 1);
});
for (const table of document.querySelectorAll(".wide")) sized.observe(table);

// One tab per function. Without a script, all of them stand below each other.
for (const tabs of document.querySelectorAll(".tabs")) {
  const panels = [...tabs.children];
  if (panels.length < 2) continue;
  const list = document.createElement("div");
  list.setAttribute("role", "tablist");
  const buttons = panels.map((panel, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = panel.dataset.name;
    button.setAttribute("role", "tab");
    panel.id ||= "tab-" + i;
    panel.setAttribute("role", "tabpanel");
    button.setAttribute("aria-controls", panel.id);
    button.onclick = () => choose(i);
    button.onkeydown = e => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
      if (step) { const next = (i + step + panels.length) % panels.length; choose(next); buttons[next].focus(); }
    };
    list.append(button);
    return button;
  });
  function choose(n) {
    panels.forEach((panel, i) => panel.hidden = i !== n);
    buttons.forEach((button, i) => { button.setAttribute("aria-selected", i === n); button.tabIndex = i === n ? 0 : -1; });
  }
  tabs.prepend(list);
  choose(Math.max(0, panels.findIndex(panel => "first" in panel.dataset)));
}

// Graphs zoom by wheel, pinch and buttons, and move by dragging; the keyboard does both.
for (const figure of document.querySelectorAll(".zoom")) {
  const svg = figure.querySelector("svg"), box = svg.viewBox.baseVal;
  const start = [box.x, box.y, box.width, box.height];
  let view = start.slice();
  const pointers = new Map();
  const apply = () => svg.setAttribute("viewBox", view.map(v => +v.toFixed(1)).join(" "));
  // Units of the drawing in a pixel.
  const scale = () => Math.max(view[2] / svg.clientWidth, view[3] / svg.clientHeight);
  function zoom(by, x, y) {
    const r = svg.getBoundingClientRect(), s = scale();
    const left = (svg.clientWidth - view[2] / s) / 2, top = (svg.clientHeight - view[3] / s) / 2;
    const px = view[0] + (x - r.left - left) * s, py = view[1] + (y - r.top - top) * s;
    by = Math.min(Math.max(by, 60 / view[2]), 2 * start[2] / view[2]);
    view = [px - (px - view[0]) * by, py - (py - view[1]) * by, view[2] * by, view[3] * by];
    apply();
  }
  function middle(by) {
    const r = svg.getBoundingClientRect();
    zoom(by, r.left + r.width / 2, r.top + r.height / 2);
  }
  function move(dx, dy) { const s = scale(); view[0] -= dx * s; view[1] -= dy * s; apply(); }
  const whole = () => { view = start.slice(); apply(); };
  // As large as can be read, beginning at the top.
  const large = () => {
    const on = figure.classList.toggle("large");
    const wide = svg.clientWidth, tall = svg.clientHeight;
    view = on ? [start[0] + (start[2] - wide) / 2, 0, wide, tall] : start.slice();
    apply();
  };
  // Once it is seen: its beginning, in letters that can be read.
  const seen = new ResizeObserver(() => {
    const wide = svg.clientWidth, tall = svg.clientHeight;
    if (!wide) return;
    seen.disconnect();
    if (start[2] > wide || start[3] > tall) { view = [start[0] + (start[2] - wide) / 2, start[1], wide, tall]; apply(); }
  });
  seen.observe(svg);
  const bar = document.createElement("div");
  bar.className = "bar";
  for (const [name, label, act] of [["+", "larger", () => middle(0.7)], ["−", "smaller", () => middle(1.4)],
    ["whole", "the whole graph", whole], ["read", "full width, in readable size", large]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.title = label;
    button.setAttribute("aria-label", label);
    button.onclick = act;
    bar.append(button);
  }
  figure.querySelector("figcaption").after(bar);
  svg.tabIndex = 0;
  svg.addEventListener("wheel", e => {
    // A page that scrolls goes on scrolling, unless the graph was meant.
    if (!e.ctrlKey && document.activeElement !== svg) return;
    e.preventDefault();
    zoom(Math.exp(e.deltaY / 400), e.clientX, e.clientY);
  }, { passive: false });
  svg.addEventListener("pointerdown", e => {
    pointers.set(e.pointerId, e);
    svg.setPointerCapture(e.pointerId);
    svg.focus({ preventScroll: true });
  });
  svg.addEventListener("pointermove", e => {
    const last = pointers.get(e.pointerId);
    if (!last) return;
    if (pointers.size === 2) {
      const other = [...pointers.values()].find(p => p.pointerId !== e.pointerId);
      const far = p => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY) || 1;
      zoom(far(last) / far(e), other.clientX, other.clientY);
    } else move(e.clientX - last.clientX, e.clientY - last.clientY);
    pointers.set(e.pointerId, e);
  });
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, e => pointers.delete(e.pointerId));
  svg.addEventListener("keydown", e => {
    const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
    if (moves[e.key]) move(...moves[e.key]);
    else if (e.key === "+" || e.key === "=") middle(0.8);
    else if (e.key === "-") middle(1.25);
    else if (e.key === "0") whole();
    else return;
    e.preventDefault();
  });
}
