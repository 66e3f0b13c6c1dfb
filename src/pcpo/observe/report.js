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
