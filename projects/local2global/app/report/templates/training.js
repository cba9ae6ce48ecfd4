// Charts of a training: shows the values at the iteration under the pointer.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const [width, height, left, bottom] = data.box;

for (const figure of document.querySelectorAll(".chart")) {
  const {curves, range: [first, last]} = data.charts[Number(figure.dataset.chart)];
  const svg = figure.querySelector(":scope > svg"), read = figure.querySelector(".read");
  const cursor = svg.querySelector(".cursor"), original = [...read.childNodes];
  svg.addEventListener("pointermove", event => {
    const bounds = svg.getBoundingClientRect();
    const x = (event.clientX - bounds.left) / bounds.width * width;
    const part = Math.min(Math.max((x - left) / (width - left), 0), 1), at = first + part * (last - first);
    cursor.setAttribute("d", `M${left + part * (width - left)} 0V${height - bottom}`);
    const items = curves.map(({run, name, points}) => {
      const nearest = points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a);
      const item = document.createElement("span"), mark = document.createElement("i");
      mark.style.background = data.runs[run][1];
      item.append(mark, `${curves.length > data.runs.length ? name + " " : ""}${Number(nearest[1].toPrecision(4))}`);
      return item;
    });
    read.replaceChildren(`iteration ${Math.round(at)} `, ...items);
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("d", "");
    read.replaceChildren(...original);
  });
}
