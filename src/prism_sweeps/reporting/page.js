document.querySelectorAll("thead button").forEach((button) => {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0], column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.order ?? "";
    const text = (row) => row.cells[column].textContent;
    const numeric = [...body.rows].some((row) => key(row) !== "");
    const compare = (a, b) => {
      if (!numeric) return text(a).localeCompare(text(b), undefined, { numeric: true });
      // Rows without a number stay last, whichever way the others go.
      if (key(a) === "" || key(b) === "") return ((key(a) === "") - (key(b) === "")) * (down ? -1 : 1);
      return key(a) - key(b);
    };
    body.append(...[...body.rows].sort((a, b) => (down ? -compare(a, b) : compare(a, b))));
  });
});
