"use strict";
// Without this script everything is shown; with it tables sort, kinds of mistakes can be hidden, pictures grow when clicked.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const column = head.cellIndex;
    const first = head.dataset.first || "descending";
    const now = head.getAttribute("aria-sort");
    const next = now === first ? (first === "descending" ? "ascending" : "descending") : first;
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", next);
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");  // what has no number comes last either way
      const order = "text" in head.dataset ? x.localeCompare(y) : Number(x) - Number(y);
      return next === "ascending" ? order : -order;
    });
    body.append(...rows);
  });
}

for (const button of document.querySelectorAll(".filters button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    for (const mark of document.querySelectorAll(`.photo .${button.dataset.kind}`)) {
      (mark.closest(".labels > g") || mark).style.display = shown ? "" : "none";
    }
  });
}

const dialog = document.querySelector("dialog");
if (dialog && dialog.showModal) {
  for (const photo of document.querySelectorAll(".photo")) {
    photo.addEventListener("click", () => {
      const large = photo.cloneNode(true), image = photo.querySelector("img");
      const ratio = image.width / image.height || 1;
      large.style.width = `min(100vw, ${100 * ratio}vh)`;
      large.style.height = "fit-content";
      dialog.replaceChildren(large);
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", () => dialog.close());
}
