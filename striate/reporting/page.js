"use strict";
const root = document.documentElement;
const all = (selector) => [...document.querySelectorAll(selector)];

// Native titles are slow and unknown to touch: the page shows them itself.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
for (const title of all("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

function show(event) {
  const target = event.target.closest("[data-tip]");
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const below = event.clientY + 18;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below + box.height > innerHeight ? event.clientY - box.height - 12 : below}px`;
}

for (const button of all("[data-filter]")) {
  button.addEventListener("click", () => {
    const kind = button.dataset.filter;
    for (const other of all("[data-filter]")) other.setAttribute("aria-pressed", String(other === button));
    for (const card of all(".card")) card.hidden = kind !== "all" && !card.dataset.kinds.split(" ").includes(kind);
  });
}

document.getElementById("theme").addEventListener("click", () => {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
});

// A saved picture carries its colours and fonts in itself, so that any program can open it.
const KEPT = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-weight", "font-family", "text-anchor"];
for (const button of all("[data-save]")) {
  button.addEventListener("click", () => {
    const drawn = [...button.closest("figure").querySelectorAll("svg")].find((svg) => svg.getClientRects().length);
    const copy = drawn.cloneNode(true);
    const shapes = copy.querySelectorAll("*");
    drawn.querySelectorAll("*").forEach((shape, place) => {
      const style = getComputedStyle(shape);
      for (const name of KEPT) shapes[place].style.setProperty(name, style.getPropertyValue(name));
    });
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.style.background = getComputedStyle(document.body).backgroundColor;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([copy.outerHTML], { type: "image/svg+xml" }));
    link.download = `striate-${button.dataset.save}.svg`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
