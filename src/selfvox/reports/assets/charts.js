// Values of charts on hover: the text of the nearest point of a curve, next to it.
"use strict";
(() => {
  const data = document.getElementById("points");
  if (!data) return;
  const texts = JSON.parse(data.textContent);
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  document.body.append(tip);

  function points(chart) {
    const listed = [];
    for (const group of chart.querySelectorAll("g[id]")) {
      if (!texts[group.id]) continue;
      [...group.querySelectorAll("use")].forEach((mark, place) => listed.push({ mark, text: texts[group.id][place] }));
    }
    return listed;
  }

  for (const chart of document.querySelectorAll(".chart")) {
    const listed = points(chart);
    chart.addEventListener("pointermove", (event) => {
      let nearest = null;
      let least = 40; // pixels: further away, no point is meant
      for (const point of listed) {
        const box = point.mark.getBoundingClientRect();
        const x = box.left + box.width / 2;
        const y = box.top + box.height / 2;
        const distance = Math.hypot(event.clientX - x, event.clientY - y);
        if (distance < least) {
          least = distance;
          nearest = { x, y, text: point.text };
        }
      }
      tip.hidden = !nearest;
      if (!nearest) return;
      tip.textContent = nearest.text;
      tip.style.left = `${nearest.x + window.scrollX + 8}px`;
      tip.style.top = `${nearest.y + window.scrollY - 30}px`;
    });
    chart.addEventListener("pointerleave", () => (tip.hidden = true));
  }
})();
