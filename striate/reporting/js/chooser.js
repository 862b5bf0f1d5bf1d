// A menu shows one of its panels.
for (const menu of all("select[data-chooser]")) {
  const panels = all(`[data-panel="${menu.dataset.chooser}"]`);
  menu.addEventListener("change", () => {
    panels.forEach((panel, place) => { panel.hidden = place !== Number(menu.value); });
  });
}
