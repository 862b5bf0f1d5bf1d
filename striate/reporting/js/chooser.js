// A menu shows one of its panels; a panel is unpacked when it is first chosen.
async function unpack(panel) {
  const bytes = Uint8Array.from(atob(panel.dataset.packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  panel.innerHTML = await new Response(stream).text();
  delete panel.dataset.packed;
  adoptTips(panel);
}

for (const menu of all("select[data-chooser]")) {
  const panels = all(`[data-panel="${menu.dataset.chooser}"]`);
  menu.addEventListener("change", async () => {
    const chosen = panels[Number(menu.value)];
    if (chosen.dataset.packed) await unpack(chosen);
    // Unpacking takes a moment, in which another may have been chosen.
    panels.forEach((panel, place) => { panel.hidden = place !== Number(menu.value); });
  });
}
