"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("script");
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const find = (id) => document.getElementById(id);
  const tone = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const verdictTone = (point) => tone({ meets: "meets", breaks: "breaks", undecided: "undecided" }[point.verdict] || "none");
  // plotly reads a few tags and entities in text, and names come from users
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  // plotly offers by default to send the figure to its makers' cloud
  const config = { displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "", displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud"] };

  const layout = (more) => {
    const axis = { gridcolor: tone("line"), zerolinecolor: tone("line"), linecolor: tone("line"), automargin: true, tickfont: { size: 12 } };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
      font: { family: "system-ui, sans-serif", size: 13, color: tone("ink") },
      margin: { l: 56, r: 18, t: 26, b: 50 },
      hoverlabel: { bgcolor: tone("sheet"), bordercolor: tone("soft"), align: "left", font: { color: tone("ink"), size: 12.5 }, namelength: 0 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: tone("soft"), activecolor: tone("accent") },
      ...more, xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
    };
  };
  const bars = (values, color) => {
    const side = (end, sign) => values.map((one) => (one[end] === null ? 0 : Math.max(0, sign * (one[end] - one.value))));
    return { type: "data", symmetric: false, array: side("high", 1), arrayminus: side("low", -1), color, thickness: 1.1, width: 3 };
  };
  const symbol = (point) => (point.best ? "star" : { baseline: "square", reference: "diamond" }[point.role] || "circle");

  // members of the front that no other member beats on the two axes shown
  const staircase = (shown, lower) => {
    const sign = lower ? 1 : -1;
    let least = Infinity;
    return shown.filter((one) => one.point.front)
      .sort((a, b) => a.x.value - b.x.value || sign * (a.y.value - b.y.value))
      .filter((one) => sign * one.y.value < least && ((least = sign * one.y.value), true));
  };
  const pad = (values, share) => {
    const low = Math.min(...values), high = Math.max(...values), room = (high - low || Math.abs(high) || 1) * share;
    return [low - room, high + room];
  };
  // far losers would squeeze everything that matters into a corner
  const near = (shown, axis, limit) => {
    const kept = shown.filter((one) => one.point.front || one.point.best || one.point.role !== "candidate");
    if (axis.better !== "lower" || limit === undefined || kept.length < 2) return null;
    const top = Math.max(2.2 * limit, ...kept.map((one) => (one.y.high ?? one.y.value) * 1.1));
    return shown.some((one) => one.y.value > top) ? top : null;
  };

  const front = (batch) => {
    const axis = data.axes.find((one) => one.key === find("axis-y").value);
    const percentile = find("axis-x").value;
    const shown = data.points
      .map((point) => ({ point, x: point.x[batch]?.[percentile], y: point.y[axis.key], hover: point.hover[batch] }))
      .filter((one) => one.x && one.y);
    const box = find(`front-${batch}`);
    if (!shown.length) { box.textContent = `Nothing was measured at batch ${batch} on these axes.`; return 0; }
    const trace = (some, more) => ({
      type: "scatter", mode: "markers", x: some.map((one) => one.x.value), y: some.map((one) => one.y.value),
      text: some.map((one) => one.hover.map((line, row) => (row ? escaped(line) : `<b>${escaped(line)}</b>`)).join("<br>")),
      hovertemplate: "%{text}<extra></extra>", ...more,
    });
    const stairs = staircase(shown, axis.better === "lower");
    const traces = [trace(stairs, { mode: "lines", hoverinfo: "skip", hovertemplate: null, line: { shape: "hv", color: tone("front"), width: 1.5 } })];
    const verdicts = [...new Set(shown.map((one) => one.point.verdict))];
    for (const verdict of verdicts) {
      const some = shown.filter((one) => one.point.verdict === verdict);
      const plain = (one) => one.point.role !== "candidate" && !one.point.best;
      const colors = some.map((one) => (plain(one) ? tone("ink") : verdictTone(one.point)));
      traces.push(trace(some, {
        error_x: bars(some.map((one) => one.x), verdictTone(some[0].point)), error_y: bars(some.map((one) => one.y), verdictTone(some[0].point)),
        marker: { symbol: some.map((one) => symbol(one.point)), color: some.map((one, row) => (one.point.heldout ? colors[row] : tone("sheet"))), line: { width: 2, color: colors },
          size: some.map((one) => (one.point.best ? 18 : one.point.role !== "candidate" ? 11 : 9)), opacity: 1 },
      }));
    }
    const xs = shown.map((one) => one.x.value);
    const wide = Math.max(...xs) / Math.min(...xs) > 6;
    const onX = data.limits.filter((one) => one.axis === "x" && one.key === percentile && [null, batch].includes(one.batch));
    const onY = data.limits.filter((one) => one.axis === "y" && one.key === axis.key);
    const top = find("zoom").checked ? near(shown, axis, onY[0]?.value) : null;
    const outside = top === null ? 0 : shown.filter((one) => one.y.value > top).length;
    const ends = [...shown.flatMap((one) => [one.y.value, one.y.low ?? one.y.value, one.y.high ?? one.y.value]), ...onY.map((one) => one.value)];
    const yRange = top === null ? pad(ends, 0.07) : [pad(ends.filter((one) => one <= top), 0.05)[0], top];
    const dash = { color: tone("breaks"), width: 1.4, dash: "dash" };
    const note = { showarrow: false, font: { size: 12, color: tone("breaks") } };
    const far = [...xs, ...onX.map((one) => one.value)];
    const xRange = wide ? pad(far.map(Math.log10), 0.08) : [Math.max(0, pad(far, 0.1)[0]), pad(far, 0.1)[1]];
    const middle = (xRange[0] + xRange[1]) / 2;
    const at = (value) => (wide ? Math.log10(value) : value);
    // one leader line each, at heights of their own, so that neighbours do not write over each other
    const text = (one, label, rise) => ({ x: at(one.x.value), y: one.y.value, text: label, showarrow: true, arrowhead: 0, arrowwidth: 1,
      arrowcolor: tone("soft"), standoff: 7, ax: at(one.x.value) > middle ? -26 : 30, ay: rise, font: { size: 12.5, color: tone("ink") } });
    const labels = shown.flatMap((one) => {
      if (one.point.best) return [text(one, "<b>best</b>", -34)];
      if (one.point.nearest) return [text(one, "<b>nearest</b>", -34)];
      if (one.point.best_at.includes(batch)) return [text(one, `best at batch ${batch}`, -66)];
      return one.point.role === "candidate" ? [] : [text(one, one.point.role, one.point.role === "baseline" ? -34 : -62)];
    });
    Plotly.react(box, traces, layout({
      xaxis: { title: { text: `${percentile} latency (ms${wide ? ", logarithmic" : ""})` }, type: wide ? "log" : "linear", range: xRange,
        ...(wide ? { tickmode: "array", ...ticks(10 ** xRange[0], 10 ** xRange[1], box.clientWidth) } : {}) },
      yaxis: { title: { text: axis.label }, range: yRange, zeroline: true },
      shapes: [
        ...onX.map((one) => ({ type: "line", x0: one.value, x1: one.value, yref: "paper", y0: 0, y1: 1, line: dash, layer: "below" })),
        ...onY.map((one) => ({ type: "line", y0: one.value, y1: one.value, xref: "paper", x0: 0, x1: 1, line: dash, layer: "below" })),
      ],
      annotations: [
        ...onX.map((one) => ({ ...note, x: at(one.value), yref: "paper", y: 1, yanchor: "bottom", text: escaped(one.text) })),
        ...onY.map((one) => ({ ...note, xref: "paper", x: 1, xanchor: "right", y: one.value, yanchor: "bottom", text: escaped(one.text) })),
        ...labels,
      ],
    }), config);
    return outside;
  };

  // 1, 2 and 5 of every decade: plotly's own labels on a logarithmic axis are bare digits
  const ticks = (low, high, width) => {
    const values = [];
    for (let decade = Math.floor(Math.log10(low)); decade <= Math.log10(high); decade += 1) {
      for (const lead of high / low < 30 && width > 380 ? [1, 1.5, 2, 3, 5, 7] : [1, 2, 5]) values.push(lead * 10 ** decade);
    }
    const kept = values.filter((one) => one >= low && one <= high);
    return { tickvals: kept, ticktext: kept.map((one) => String(Number(one.toPrecision(3)))) };
  };

  const latency = (one) => {
    const box = find(`latency-${one.batch}`);
    const all = [...one.baseline, ...one.candidate];
    const wide = Math.max(...all) / Math.min(...all) > 6;
    const line = (values, name, color, dash) => ({
      type: "scatter", mode: "lines", name, x: values, y: values.map((_, row) => (100 * (row + 0.5)) / values.length),
      line: { color, width: 2.4, dash }, hovertemplate: `${name}: %{y:.0f} % within %{x:.3~g} ms<extra></extra>`,
    });
    const range = wide ? pad(all.map(Math.log10), 0.06) : pad(all, 0.06);
    const middle = (values) => values[values.length >> 1];
    const right = middle(one.baseline) > middle(one.candidate);
    const label = (values, text, color, left) => ({ x: wide ? Math.log10(middle(values)) : middle(values), y: 50, text, showarrow: false,
      xshift: left ? -9 : 9, xanchor: left ? "right" : "left", font: { size: 13, color } });
    const original = tone("soft"), best = tone("accent");
    Plotly.react(box, [line(one.baseline, "original", original, "dot"), line(one.candidate, "optimised", best, "solid")], layout({
      margin: { l: 56, r: 18, t: 12, b: 50 },
      xaxis: { title: { text: `latency (ms${wide ? ", logarithmic" : ""})` }, type: wide ? "log" : "linear", range, ...(wide ? { tickmode: "array", ...ticks(10 ** range[0], 10 ** range[1], box.clientWidth) } : {}) },
      yaxis: { title: { text: "calls within (%)" }, range: [0, 101], tickvals: [0, 25, 50, 75, 95] },
      annotations: [label(one.baseline, "original", original, right && wide), label(one.candidate, "optimised", best, !right)],
    }), { ...config, displayModeBar: false });
  };

  const curve = (one, place) => {
    const epochs = one.losses.map((_, row) => row + 1), scored = one.scores.some((value) => value !== null);
    const marks = (color) => ({ color: epochs.map((epoch) => (epoch === one.kept ? tone("sheet") : color)), size: epochs.map((epoch) => (epoch === one.kept ? 10 : 5)), line: { width: 2, color } });
    const line = (values, name, color, more) => ({ type: "scatter", mode: "lines+markers", x: epochs, y: values, line: { color, width: 2.2 }, marker: marks(color),
      hovertemplate: `epoch %{x}: ${name} %{y:.4~g}<extra></extra>`, ...more });
    const traces = [line(one.losses, "loss", tone("soft"), {})];
    if (scored) traces.push(line(one.scores, "score", tone("accent"), { yaxis: "y2" }));
    Plotly.react(find(`curve-${place}`), traces, layout({
      margin: { l: 56, r: scored ? 60 : 18, t: 12, b: 50 },
      xaxis: { title: { text: "epoch" }, range: [0.5, epochs.length + 0.5], tickformat: "d", ...(epochs.length < 12 ? { dtick: 1 } : {}) },
      yaxis: { title: { text: "loss" }, rangemode: "tozero" },
      ...(scored ? { yaxis2: { title: { text: "score", font: { color: tone("accent") } }, overlaying: "y", side: "right", automargin: true, showgrid: false, tickmode: "auto", nticks: 6, tickformat: ".3~f", tickfont: { color: tone("accent") } } } : {}),
    }), { ...config, displayModeBar: false });
  };

  const draw = () => {
    if (data.points.length && data.axes.length) {
      const outside = data.batches.map((batch) => [batch, front(batch)]).filter(([, many]) => many);
      const said = outside.map(([batch, many]) => `${many} at batch ${batch}`).join(", ");
      find("outside").textContent = said ? `Above the top edge: ${said}. Untick “Near the budget only” to see ${outside.length + outside[0][1] > 2 ? "them" : "it"}.` : "";
    }
    data.histograms.forEach(latency);
    data.curves.forEach(curve);
  };

  const table = find("comparison");
  const rows = [...table.tBodies[0].rows];
  const filter = () => {
    const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean), verdict = find("filter-verdict").value;
    let many = 0;
    for (const row of rows) {
      const text = row.cells[0].textContent.toLowerCase();
      row.hidden = !(words.every((word) => text.includes(word)) && (!verdict || row.dataset.verdict === verdict));
      many += row.hidden ? 0 : 1;
    }
    find("count").textContent = `${many} of ${rows.length} shown`;
  };
  const sort = (head) => {
    const place = head.cellIndex, number = head.dataset.kind === "number";
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[place].dataset.sort;
    const compare = (a, b) => {
      if (key(a) === undefined || key(b) === undefined) return (key(a) === undefined) - (key(b) === undefined);
      return (down ? -1 : 1) * (number ? key(a) - key(b) : key(a).localeCompare(key(b)));
    };
    table.tBodies[0].append(...[...rows].sort(compare));
  };
  const pick = () => {
    const batch = document.querySelector("input[name=batch]:checked")?.value;
    for (const cell of table.querySelectorAll("[data-batch]")) cell.hidden = Boolean(batch) && cell.dataset.batch !== batch;
  };

  for (const head of table.tHead.rows[0].cells) head.querySelector("button").addEventListener("click", () => sort(head));
  find("filter").addEventListener("input", filter);
  find("filter-verdict").addEventListener("change", filter);
  for (const radio of document.querySelectorAll("input[name=batch]")) radio.addEventListener("change", pick);
  for (const id of ["axis-y", "axis-x", "zoom"]) find(id)?.addEventListener("change", draw);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
  const reveal = () => {
    const row = location.hash.startsWith("#c-") && find(decodeURIComponent(location.hash.slice(1)));
    if (row) row.querySelector("details").open = true;
  };
  addEventListener("hashchange", reveal);
  filter();
  pick();
  reveal();
  draw();
})();
