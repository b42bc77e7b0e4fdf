"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("script");
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const box = document.getElementById("map");
  if (!box) return;
  const tone = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const folded = (text) => text.replace(/(.{1,80})(\s+|$)/g, "$1\n").trim().split("\n").map(escaped).join("<br>");
  // plotly offers by default to send the figure to its makers' cloud
  const config = { displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "", displayModeBar: false };
  const names = data.rows.map((row) => `${row.family}: ${escaped(row.name)}`);

  const draw = () => {
    const measure = data.measures[Number(document.getElementById("measure").value)];
    const signed = measure.key === "excess";
    const flat = measure.values.flat().filter((one) => one !== null);
    const reach = Math.max(2 * data.tolerance, ...flat.map(Math.abs));
    const middle = tone("sheet");
    const scale = signed
      ? [[0, tone("accent")], [0.5, middle], [1, tone("breaks")]]
      : [[0, tone("breaks")], [1, middle]];
    const digits = signed ? (one) => `${one > 0 ? "+" : ""}${one.toFixed(1)}` : (one) => one.toFixed(3);
    const text = measure.values.map((row, r) => row.map((one, c) => (one === null ? "" : `${digits(one)} ${signed ? data.marks[r][c] : ""}`)));
    const trace = {
      type: "heatmap", x: data.columns, y: names, z: measure.values, text, texttemplate: "%{text}", textfont: { size: 12, color: tone("ink") },
      customdata: data.hover.map((row) => row.map(folded)), hovertemplate: "%{customdata}<extra></extra>", hoverongaps: false,
      colorscale: scale, xgap: 2, ygap: 2, colorbar: { title: { text: signed ? `${measure.label} (${data.unit})` : measure.label, side: "right" }, thickness: 12 },
      ...(signed ? { zmin: -reach, zmax: reach } : {}),
    };
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: 90 + 27 * names.length,
      font: { family: "system-ui, sans-serif", size: 13, color: tone("ink") }, margin: { l: 10, r: 10, t: 40, b: 10 },
      xaxis: { side: "top", fixedrange: true, type: "category" }, yaxis: { autorange: "reversed", automargin: true, fixedrange: true, type: "category" },
      hoverlabel: { bgcolor: tone("sheet"), bordercolor: tone("soft"), align: "left", font: { color: tone("ink"), size: 12.5 } },
    };
    Plotly.react(box, [trace], layout, config);
  };
  document.getElementById("measure").addEventListener("change", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
