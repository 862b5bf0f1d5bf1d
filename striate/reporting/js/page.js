// The page's own hover texts, and the switch between light and dark.
const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Native titles are slow and unknown to touch: the page shows them itself.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
adoptTips(document);
document.addEventListener("pointermove", showTip);
document.addEventListener("pointerdown", showTip);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

function adoptTips(within) {
  for (const title of all("svg title", within)) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
}

function showTip(event) {
  const target = event.target.closest?.("[data-tip]");
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const below = event.clientY + 18;
  const top = below + box.height > innerHeight ? event.clientY - box.height - 12 : below;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, top)}px`;
}

document.getElementById("theme").addEventListener("click", () => {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
});

// The contents bar marks the part that is read.
const links = all(".contents a");
const parts = links.map((link) => document.getElementById(link.hash.slice(1)));
function markPart() {
  const passed = parts.filter((part) => part.getBoundingClientRect().top < 90);
  const current = links[Math.max(0, passed.length - 1)];
  for (const link of links) {
    if (link === current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
document.addEventListener("scroll", markPart, { passive: true });
markPart();

// Paper has no folds: all are open while the page is printed.
const folded = () => all("details:not([open])");
let opened = [];
addEventListener("beforeprint", () => {
  opened = folded();
  for (const fold of opened) fold.open = true;
});
addEventListener("afterprint", () => {
  for (const fold of opened) fold.open = false;
});
