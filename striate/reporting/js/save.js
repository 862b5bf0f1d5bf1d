// A saved picture carries its colours and fonts in itself, so that any program can open it.
const KEPT = [
  "fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity",
  "font-size", "font-weight", "font-family", "text-anchor", "visibility",
];

function standalone(drawn) {
  const copy = drawn.cloneNode(true);
  const shapes = copy.querySelectorAll("*");
  drawn.querySelectorAll("*").forEach((shape, place) => {
    const style = getComputedStyle(shape);
    for (const name of KEPT) shapes[place].style.setProperty(name, style.getPropertyValue(name));
    shapes[place].removeAttribute("class");
    if (!shape.dataset.tip) return;
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = shape.dataset.tip;
    shapes[place].removeAttribute("data-tip");
    shapes[place].prepend(title);
  });
  const [, , width, height] = copy.getAttribute("viewBox").split(" ");
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  copy.style.background = getComputedStyle(document.body).backgroundColor;
  return new XMLSerializer().serializeToString(copy);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-save]");
  if (!button) return;
  const drawn = all("svg", button.closest("figure")).find((svg) => svg.getClientRects().length);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([standalone(drawn)], { type: "image/svg+xml" }));
  link.download = `striate-${button.dataset.save}.svg`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
