"use strict";
// A slider's value is the share of the picture, from the left, that shows the state before training.
function move(slider, value) {
  slider.value = value;
  slider.parentElement.style.setProperty("--cut", value + "%");
}

const sliders = Array.from(document.querySelectorAll(".stage input"));
for (const slider of sliders) {
  slider.addEventListener("input", () => move(slider, slider.value));
  move(slider, slider.value);
}

const all = document.getElementById("move-all");
if (all) {
  all.addEventListener("input", () => sliders.forEach((slider) => move(slider, all.value)));
}

// Pictures that enlarge. One of them can be reached by Tab; arrow keys go on from there, in the table and enlarged.
const zoom = document.getElementById("zoom");
const rows = Array.from(document.querySelectorAll("tr:has(.enlarge)"), (row) => Array.from(row.querySelectorAll(".enlarge")));
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let at = [0, 0];

function select(column, row, focus) {
  const y = Math.max(0, Math.min(row, rows.length - 1));
  const x = Math.max(0, Math.min(column, rows[y].length - 1));
  rows[at[1]][at[0]].tabIndex = -1;
  at = [x, y];
  const cell = rows[y][x];
  cell.tabIndex = 0;
  const folded = cell.closest("details:not([open])");
  if (folded) folded.open = true;
  if (focus) cell.focus();
  if (zoom.open) show(cell);
}

function show(cell) {
  const picture = cell.firstElementChild.cloneNode();
  picture.loading = "eager";
  picture.alt = cell.title;
  zoom.querySelector(".large").replaceChildren(picture);
  zoom.querySelector("figcaption").textContent = cell.title;
}

function arrow(event) {
  const step = ARROWS[event.key];
  if (!step) return;
  event.preventDefault();
  select(at[0] + step[0], at[1] + step[1], !zoom.open);
}

if (zoom && rows.length) {
  rows.forEach((row, y) => row.forEach((cell, x) => {
    cell.tabIndex = x || y ? -1 : 0;
    cell.addEventListener("click", () => {
      select(x, y, false);
      show(cell);
      zoom.showModal();
    });
    cell.addEventListener("keydown", arrow);
  }));
  zoom.addEventListener("keydown", arrow);
  zoom.addEventListener("close", () => select(...at, true));
  zoom.addEventListener("click", (event) => {
    const move = event.target.dataset.move;
    if (move === "close" || event.target === zoom) zoom.close();
    else if (move) select(...move.split(" ").map((step, axis) => at[axis] + Number(step)), false);
  });
}
