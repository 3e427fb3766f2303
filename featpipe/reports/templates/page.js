"use strict";
// What elements can be given, by class or data attribute:
//   table.sortable              a click on a column's header sorts by it, again: the other way
//   input[data-rows-of=ID]      shows those rows of table ID whose first cell has the typed text
//   .gallery                    figures with data-truth and data-predicted, shown by choice, in steps
//   button.pick                 chooses its data-truth and data-predicted in the gallery
//   .matrix                     a confusion matrix; see there
//   .threshold                  a slider over counts by threshold
// Elements of class "scripted" are shown only where this script runs.
document.documentElement.classList.add("js");
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const percent = (share) => (100 * share).toFixed(1) + "%";

// A cell's data-value counts where it has one, else its text; empty cells and dashes come last.
function makeSortable(table) {
  const headers = [...table.tHead.rows[0].cells];
  const words = new Intl.Collator("en", { numeric: true });
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => {
        const cell = row.cells[column];
        return [cell.dataset.value ?? cell.textContent.trim().replace(/^–$/, ""), row];
      });
      const given = rows.filter(([value]) => value !== "");
      const areNumbers = given.every(([value]) => Number.isFinite(Number(value)));
      const order = areNumbers ? (a, b) => a - b : words.compare;
      given.sort(([a], [b]) => (up ? order(a, b) : order(b, a)));
      const rest = rows.filter(([value]) => value === "");
      table.tBodies[0].append(...[...given, ...rest].map(([, row]) => row));
    });
  });
}
all("table.sortable").forEach(makeSortable);

for (const input of all("input[data-rows-of]")) {
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    for (const row of document.getElementById(input.dataset.rowsOf).tBodies[0].rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    }
  });
}

function makeGallery(gallery) {
  const figures = all("figure", gallery);
  const fields = all("select[data-field]", gallery);
  const more = gallery.querySelector("[data-more]");
  const step = Number(gallery.dataset.step);
  let limit = step;
  const refresh = () => {
    const chosen = figures.filter((figure) =>
      fields.every((field) => !field.value || figure.dataset[field.dataset.field] === field.value),
    );
    const shown = new Set(chosen.slice(0, limit));
    for (const figure of figures) figure.hidden = !shown.has(figure);
    const choice = fields.filter((field) => field.value).map(
      (field) => `, ${field.labels[0].firstChild.data.trim()} ${field.selectedOptions[0].text}`,
    );
    gallery.querySelector(".status").textContent =
      `${shown.size} of ${chosen.length} shown${choice.join("")}`;
    more.hidden = shown.size === chosen.length;
  };
  const choose = (truth, predicted) => {
    for (const field of fields) field.value = field.dataset.field === "truth" ? truth : predicted;
    limit = step;
    refresh();
  };
  for (const field of fields) field.addEventListener("change", () => { limit = step; refresh(); });
  more.addEventListener("click", () => { limit += 4 * step; refresh(); });
  gallery.querySelector("[data-reset]").addEventListener("click", () => choose("", ""));
  refresh();
  return (truth, predicted) => {
    choose(truth, predicted);
    gallery.scrollIntoView();
    gallery.querySelector("h2").focus({ preventScroll: true });
  };
}
const gallery = document.querySelector(".gallery figure")?.closest(".gallery");
const showMistakes = gallery ? makeGallery(gallery) : () => {};
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.pick");
  if (button) showMistakes(button.dataset.truth, button.dataset.predicted);
});

// Cells are buttons of a table or, where there are many classes, squares of a drawing. Either has a
// cursor that the arrow keys move, and a line of text that says what is under it.
function makeMatrix(matrix) {
  const size = Number(matrix.dataset.classes);
  const caption = matrix.querySelector(".caption");
  const map = matrix.querySelector("svg.map");
  const names = all(map ? "text.truth" : "tbody th", matrix).map((name) => name.textContent);
  const counts = Array.from({ length: size }, () => new Map());
  let at = [0, 0];

  const describe = ([truth, predicted]) => {
    const count = counts[truth].get(predicted) ?? 0;
    const total = [...counts[truth].values()].reduce((a, b) => a + b, 0);
    const what = truth === predicted ? "recognised" : `taken for ${names[predicted]}`;
    caption.textContent =
      `${names[truth]}, ${what}: ${count} of ${total}` + (total ? ` (${percent(count / total)})` : "");
  };
  // A right answer has no mistakes to show; its class has.
  const pick = ([truth, predicted]) =>
    showMistakes(String(truth), truth === predicted ? "" : String(predicted));
  const onArrow = (move) => (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    move(at.map((value, axis) => Math.min(Math.max(value + step[axis], 0), size - 1)));
  };

  if (map) {
    const cursor = map.querySelector(".cursor");
    for (const cell of all("[data-count]", map)) {
      counts[cell.y.baseVal.value].set(cell.x.baseVal.value, Number(cell.dataset.count));
    }
    const move = (place) => {
      at = place;
      cursor.setAttribute("y", at[0]);
      cursor.setAttribute("x", at[1]);
      map.classList.add("pointed");
      describe(at);
    };
    const under = (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
      const place = [Math.floor(point.y), Math.floor(point.x)];
      return place.every((value) => value >= 0 && value < size) ? place : null;
    };
    map.addEventListener("pointermove", (event) => { const place = under(event); if (place) move(place); });
    map.addEventListener("click", (event) => { const place = under(event); if (place) { move(place); pick(at); } });
    map.addEventListener("keydown", onArrow((place) => {
      move(place);
      cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
    }));
    map.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(at); }
    });
    map.addEventListener("focus", () => move(at));
    const toggle = matrix.querySelector("[data-toggle]");
    toggle.addEventListener("change", () => {
      matrix.classList.toggle("named", toggle.checked);
      // Names need room to the left and above, of as many cells as they are long.
      const room = toggle.checked ? Math.min(Math.max(...names.map((name) => [...name].length)) * 0.6 + 1, 16) : 0;
      map.setAttribute("viewBox", `${-room} ${-room} ${size + room} ${size + room}`);
      map.style.setProperty("--k", size + room);
    });
  } else {
    const place = (button) => button.dataset.cell.split(",").map(Number);
    const buttons = new Map(all("[data-cell]", matrix).map((button) => [button.dataset.cell, button]));
    for (const button of buttons.values()) {
      const [truth, predicted] = place(button);
      counts[truth].set(predicted, Number(button.textContent));
      // One stop of the tab key for the whole matrix.
      button.tabIndex = truth || predicted ? -1 : 0;
      button.addEventListener("click", () => pick(place(button)));
      button.addEventListener("pointerenter", () => describe(place(button)));
      button.addEventListener("focus", () => {
        buttons.get(String(at)).tabIndex = -1;
        at = place(button);
        button.tabIndex = 0;
        describe(at);
      });
    }
    matrix.addEventListener("keydown", onArrow((next) => buttons.get(String(next)).focus()));
  }
}
all(".matrix").forEach(makeMatrix);

// The block of JSON holds, for every answer, how many pictures are given it and how many of those
// rightly, by hundredths of its probability; the sum from a threshold on is what it lets through.
function makeThreshold(section) {
  const fromHereOn = (bins) => bins.reduceRight((sums, n) => [n + (sums[0] ?? 0), ...sums], []);
  const tables = JSON.parse(section.querySelector("script").textContent);
  const pictures = tables[0].of;
  const select = section.querySelector("[data-answer]");
  const slider = section.querySelector("input");
  const share = (part, whole) => (whole ? part / whole : null);
  const refresh = () => {
    const table = tables[select.value === "" ? 0 : Number(select.value) + 1];
    const [given, right] = [fromHereOn(table.given), fromHereOn(table.right)];
    const at = Number(slider.value);
    const series = {
      precision: given.map((n, i) => share(right[i], n)),
      recall: right.map((n) => share(n, table.of)),
      coverage: given.map((n) => share(n, pictures)),
    };
    section.querySelector("output").textContent = (at / 100).toFixed(2);
    for (const [name, values] of Object.entries(series)) {
      const value = values[at];
      section.querySelector(`b[data-is=${name}]`).textContent = value === null ? "–" : percent(value);
      const points = values.flatMap((y, x) => (y === null ? [] : [`${x} ${(50 - 50 * y).toFixed(2)}`]));
      section.querySelector(`path[data-is=${name}]`).setAttribute("d", points.length ? "M" + points.join("L") : "");
    }
    section.querySelector(".now").setAttribute("d", `M${at} 0V50`);
  };
  select.addEventListener("change", refresh);
  slider.addEventListener("input", refresh);
  refresh();
}
all(".threshold").forEach(makeThreshold);
