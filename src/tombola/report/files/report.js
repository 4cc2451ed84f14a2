"use strict";
// One level of sample grids at a time; without this script all of them are shown.
document.documentElement.classList.add("js");
for (const viewer of document.querySelectorAll(".viewer")) {
  const slider = viewer.querySelector("input[type=range]");
  const levels = [...viewer.querySelectorAll(".level")];
  if (!slider) continue;
  const output = viewer.querySelector("output");
  const show = () => {
    const chosen = levels[Number(slider.value)];
    for (const level of levels) level.classList.toggle("current", level === chosen);
    output.textContent = chosen.dataset.name;
    slider.setAttribute("aria-valuetext", chosen.dataset.name);
  };
  slider.value = viewer.dataset.start; // browsers keep a slider's old place over a reload
  slider.addEventListener("input", show);
  show();
}
// On paper everything is open.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
});
