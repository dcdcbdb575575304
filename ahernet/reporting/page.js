"use strict";
// Draws the page from the JSON block. Text of strangers becomes text nodes and attribute values alone, never markup.
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const names = content.names;

  function element(tag, attributes, ...children) {
    return filled(document.createElement(tag), attributes, children);
  }

  function drawn(tag, attributes, ...children) {
    return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  }

  function filled(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const note = (text) => element("p", { class: "note" }, text);
  const percent = (fraction) => (fraction === null ? "–" : (100 * fraction).toFixed(2));
  const count = (number) => number.toLocaleString("en");
  const section = (name) => document.getElementById(name);
  const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
  // As many digits as a score needs, without trailing zeros.
  const brief = (number) => (number === null ? "–" : String(Number(number.toPrecision(3))));

  function labelled(text, control) {
    return element("label", {}, text + " ", control);
  }

  function legend(entries) {
    const items = entries.map(([name, style]) =>
      element("span", {}, drawn("svg", { viewBox: "0 0 12 12" }, drawn("rect", { class: style, width: 12, height: 12 })), name));
    return element("div", { class: "legend" }, ...items);
  }

  // ---- charts ----

  const WIDTH = 560, HEIGHT = 270, LEFT = 48, RIGHT = 12, TOP = 14, BOTTOM = 34;

  function chart(caption, ...children) {
    const box = `0 0 ${WIDTH} ${HEIGHT}`;
    return drawn("svg", { viewBox: box, role: "img", "aria-label": caption }, ...children);
  }

  function figure(caption, ...children) {
    return element("figure", {}, element("figcaption", {}, caption), ...children);
  }

  function text(x, y, anchor, value, style) {
    return drawn("text", { x, y, "text-anchor": anchor, ...(style ? { class: style } : {}) }, value);
  }

  function line(x1, y1, x2, y2, style) {
    return drawn("line", { x1, y1, x2, y2, class: style });
  }

  // A round step so that `most` steps at the utmost cover `span`.
  function roundStep(span, most) {
    const rough = span / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    return power * ([1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) || 10);
  }

  function ticks(low, high, most) {
    const step = roundStep(high - low, most);
    const found = [];
    if (!(step > 0)) return found;
    for (let n = Math.ceil(low / step); n * step <= high * (1 + 1e-9); n++) found.push(Number((n * step).toPrecision(12)));
    return found;
  }

  function decades(low, high) {
    const found = [];
    const step = Math.max(1, Math.ceil((high - low) / 6));
    for (let n = Math.ceil(low); n <= high; n += step) found.push(n);
    return found;
  }

  const across = (share) => LEFT + share * (WIDTH - LEFT - RIGHT);
  const upward = (share) => HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);

  // Curves of shares from 0 to 1, or of positive numbers over a logarithmic axis.
  function lineChart(caption, xName, curves, logarithmic) {
    const points = curves.flatMap(([, points]) => points);
    const right = Math.max(...points.map(([x]) => x));
    const left = Math.min(0, ...points.map(([x]) => x));
    const value = logarithmic ? Math.log10 : (y) => y;
    const heights = points.map(([, y]) => value(y));
    let [low, high] = logarithmic ? [Math.min(...heights), Math.max(...heights)] : [0, 1];
    if (high - low < 1e-9) { high += 0.5; low -= 0.5; }
    const x = (number) => across((number - left) / (right - left || 1));
    const y = (number) => upward((value(number) - low) / (high - low));
    const marks = [];
    const levels = logarithmic ? decades(low, high).map((n) => [10 ** n, brief(10 ** n)]) : ticks(0, high, 5).map((n) => [n, (100 * n).toFixed(0)]);
    for (const [level, name] of levels) marks.push(line(LEFT, y(level), WIDTH - RIGHT, y(level), "axis"), text(LEFT - 6, y(level) + 4, "end", name));
    for (const tick of ticks(left, right, 6)) marks.push(text(x(tick), HEIGHT - BOTTOM + 16, "middle", tick < 1e7 ? count(tick) : brief(tick)));
    marks.push(text(across(0.5), HEIGHT - 3, "middle", xName));
    curves.forEach(([, points], number) => marks.push(drawn("polyline", {
      class: `curve l${number % 7}`, points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" "),
    })));
    return figure(caption, legend(curves.map(([name], number) => [name, `f${number % 7}`])), chart(caption, ...marks));
  }

  function levelLines(high) {
    return ticks(0, high, 5).flatMap((level) => {
      const y = upward(level / high);
      return [line(LEFT, y, WIDTH - RIGHT, y, "axis"), text(LEFT - 6, y + 4, "end", (100 * level).toFixed(100 * high < 5 ? 1 : 0))];
    });
  }

  // ---- table of classes ----

  function classTable() {
    const { columns, rows, left_out: leftOut, tiou } = content.classes;
    const shares = new Set(["AP@0.50", "AP@0.75", "AP@0.95", "average AP", "precision", "recall", "F1"]);
    const filter = element("input", { type: "search", placeholder: "part of a name" });
    const body = element("tbody");
    const lines = rows.map((row) => {
      const cells = columns.map((column, number) => {
        const value = row[number + 1];
        return element("td", {}, column === "score" ? brief(value) : shares.has(column) ? percent(value) : count(value));
      });
      const name = names[row[0]];
      return { row, name, node: element("tr", {}, element("td", { title: name }, name), ...cells) };
    });
    const heads = ["class", ...columns].map((column, number) => {
      const button = element("button", { type: "button" }, shares.has(column) ? `${column}, %` : column);
      const head = element("th", { scope: "col" }, button);
      button.addEventListener("click", () => sortBy(number, head.getAttribute("aria-sort") === "descending" || (number === 0 && !head.hasAttribute("aria-sort"))));
      return head;
    });

    function sortBy(column, ascending) {
      heads.forEach((head) => head.removeAttribute("aria-sort"));
      heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const direction = ascending ? 1 : -1;
      // What has no value comes last either way.
      const value = (entry) => (entry.row[column] === null ? -direction * Infinity : entry.row[column]);
      lines.sort((a, b) => (column === 0 ? direction * a.name.localeCompare(b.name) : direction * Math.sign(value(a) - value(b)) || 0));
      body.replaceChildren(...lines.map((entry) => entry.node));
    }

    filter.addEventListener("input", () => {
      const wanted = filter.value.toLowerCase();
      for (const entry of lines) entry.node.hidden = !entry.name.toLowerCase().includes(wanted);
    });
    sortBy(columns.indexOf("average AP") + 1, false);
    section("classes").append(
      element("div", { class: "controls" }, labelled("Show classes with", filter)),
      element("div", { class: "tall" }, element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body)),
      note(`Score is the operating point: the lowest score to take a detection for true, where F1 at tIoU ${tiou} is best. `
        + "Kept, precision, recall and F1 are those of the detections with at least this score."
        + (leftOut ? ` ${count(leftOut)} classes with fewer instances are not listed; means are over all.` : "")));
  }

  // ---- curves ----

  function recallCurves() {
    const { proposals, curves, area } = content.recall;
    const lines = Object.entries(curves).map(([name, values]) => [name, values.map((value, n) => [proposals[n], value])]);
    section("recall").append(
      element("div", { class: "charts" }, lineChart("Recall, %", "proposals per video on average", lines, false)),
      note(`Area under the average: ${percent(area)} %. Detections count as proposals whatever their class.`));
  }

  function lossCurves() {
    if (!content.losses) return;
    const { iterations, curves, broken } = content.losses;
    const lines = Object.entries(curves).map(([name, points]) => [name, points.filter(([, y]) => y > 0)]).filter(([, points]) => points.length);
    if (lines.length) section("losses").append(element("div", { class: "charts" }, lineChart("Loss (logarithmic)", "iteration", lines, true)));
    section("losses").append(note(`${count(iterations)} iterations, means of neighbouring ones.` + (broken ? ` ${count(broken)} values are no finite numbers.` : "")));
  }

  // ---- error analysis ----

  function errorProfile() {
    const { kinds, counts } = content.errors;
    const marks = levelLines(1);
    const slot = (WIDTH - LEFT - RIGHT) / counts.length;
    counts.forEach((row, multiple) => {
      const sum = row.reduce((a, b) => a + b, 0);
      let below = 0;
      row.forEach((number, kind) => {
        if (!number) return;
        const share = number / sum;
        const top = upward(below + share);
        const bar = { class: `k${kind}`, x: LEFT + (multiple + 0.12) * slot, y: top, width: 0.76 * slot, height: upward(below) - top };
        marks.push(drawn("rect", bar, drawn("title", {}, `${kinds[kind]}: ${(100 * share).toFixed(1)} % of ${count(Math.round(sum))}`)));
        below += share;
      });
      marks.push(text(LEFT + (multiple + 0.5) * slot, HEIGHT - BOTTOM + 16, "middle", `${multiple + 1}G`));
    });
    marks.push(text(across(0.5), HEIGHT - 3, "middle", "best-scored detections, in steps of the ground truths (G) of their class"));
    return figure("Kinds of detections, %", legend(kinds.map((name, kind) => [name, `k${kind}`])), chart("Kinds of detections", ...marks));
  }

  function errorGain() {
    const { kinds, gain } = content.errors;
    const high = Math.max(0.01, ...gain) * 1.15;
    const slot = (WIDTH - LEFT - RIGHT) / gain.length;
    const marks = levelLines(high);
    gain.forEach((value, number) => {
      const top = upward(Math.max(value, 0) / high), middle = LEFT + (number + 0.5) * slot;
      marks.push(
        drawn("rect", { class: `k${number + 1}`, x: middle - 0.3 * slot, y: top, width: 0.6 * slot, height: upward(0) - top }),
        text(middle, top - 4, "middle", (100 * value).toFixed(2), "value"),
        text(middle, HEIGHT - BOTTOM + 16, "middle", kinds[number + 1].replace(" error", "")));
    });
    return figure("What mAP would gain without each kind, percentage points", chart("Gain without each kind", ...marks));
  }

  function errorAnalysis() {
    section("errors").append(
      element("div", { class: "charts" }, errorProfile(), errorGain()),
      note("As in DETAD: of each class with G ground truths the 10 G best-scored detections, means over tIoU 0.5 to 0.95. A detection "
        + "that takes no ground truth is judged by the one it overlaps most: at the tIoU asked for, a double detection (same class) or a "
        + "wrong label; from 0.1 on, a localization error (same class) or a confusion; else a background error."));
  }

  // ---- sensitivity ----

  function sensitivityChart({ name, bins, unsorted }) {
    const slot = (WIDTH - LEFT - RIGHT) / bins.length;
    const marks = levelLines(1);
    const whole = upward(content.sensitivity.whole.normalized);
    bins.forEach((bin, number) => {
      const middle = LEFT + (number + 0.5) * slot;
      [bin.normalized, bin.recall].forEach((value, which) => {
        if (value === null) return;
        const top = upward(value), x = middle + (which ? 0.03 : -0.37) * slot;
        marks.push(
          drawn("rect", { class: which ? "f4" : "f0", x, y: top, width: 0.34 * slot, height: upward(0) - top }),
          text(x + 0.17 * slot, top - 3, "middle", (100 * value).toFixed(1), "value"));
      });
      const range = bin.high === null ? `over ${bin.low}` : `to ${bin.high}`;
      marks.push(
        text(middle, HEIGHT - BOTTOM + 14, "middle", `${bin.name}: ${range}`),
        text(middle, HEIGHT - BOTTOM + 28, "middle", `${count(bin.instances)} inst.`));
    });
    marks.push(line(LEFT, whole, WIDTH - RIGHT, whole, "dashed"));
    const units = { coverage: "coverage: share of the video", length: "length, s", instances: "instances of the class in the video" };
    const caption = units[name] + (unsorted ? ` (${count(unsorted)} in no bin)` : "");
    return figure(caption, chart(caption, ...marks));
  }

  function sensitivityCharts() {
    const { normalized, recall } = content.sensitivity.whole;
    section("sensitivity").append(
      legend([["normalized mAP, %", "f0"], ["recall, %", "f4"]]),
      element("div", { class: "charts" }, ...content.sensitivity.parts.map(sensitivityChart)),
      note("Parts of the ground truth; detections that took a ground truth outside a part are ignored there. Means over tIoU 0.5 to "
        + `0.95; all together have normalized mAP ${percent(normalized)} % (dashed) and recall ${percent(recall)} %. Precision is normalized `
        + `to the same number of ground truths for all parts, as in DETAD, with its bins for ${content.bins}.`));
  }

  // ---- timelines ----

  const NAME_ROOM = 190, ROW = 11, LANE_GAP = 8, MOST_ROWS = 8, MOST_LANES = 24, AXIS_ROOM = 18;

  // Bars that overlap go into rows below one another, the first come first; those that find none of `most` rows are counted.
  function packed(bars, most) {
    const rows = [];
    const placed = [];
    for (const bar of bars) {
      let row = rows.findIndex((others) => others.every((other) => other[2] <= bar[1] || bar[2] <= other[1]));
      if (row < 0) row = rows.push([]) - 1;
      if (row === most) { rows.pop(); continue; }
      rows[row].push(bar);
      placed.push([bar, row]);
    }
    return { placed, rows: rows.length, left: bars.length - placed.length };
  }

  function lanesOf(video, wanted, minimum) {
    const lanes = new Map();
    const lane = (label) => lanes.get(label) || lanes.set(label, { truths: [], found: [] }).get(label);
    for (const bar of video.truths) if (wanted === null || bar[0] === wanted) lane(bar[0]).truths.push(bar);
    for (const bar of video.found) if (bar[3] >= minimum && (wanted === null || bar[0] === wanted)) lane(bar[0]).found.push(bar);
    return [...lanes].map(([label, bars]) => ({
      label, truths: packed(bars.truths, MOST_ROWS), found: packed(bars.found, MOST_ROWS),
    }));
  }

  const laneHeight = (lane) => Math.max(ROW * (lane.truths.rows + lane.found.rows), 2 * ROW) + LANE_GAP;

  function drawTracks(video, lanes, width) {
    const ends = [...video.truths, ...video.found].map((bar) => bar[2]);
    const duration = video.duration || Math.max(...ends, 1e-3);
    const x = (time) => Math.min(Math.max(time / duration, 0), 1) * (width - 2) + 1;
    const height = lanes.reduce((sum, lane) => sum + laneHeight(lane), 0) + AXIS_ROOM;
    const labels = drawn("svg", { width: NAME_ROOM, height });
    const tracks = drawn("svg", { width, height });
    let top = 0;
    for (const lane of lanes) {
      tracks.append(drawn("rect", { class: "lane", x: 0, y: top, width, height: laneHeight(lane) - LANE_GAP / 2 }));
      top += laneHeight(lane);
    }
    for (const tick of ticks(0, duration, Math.max(2, Math.floor(width / 90)))) {
      const anchor = tick === 0 ? "start" : x(tick) > width - 20 ? "end" : "middle";
      tracks.append(line(x(tick), 0, x(tick), height - AXIS_ROOM, "axis"), text(x(tick), height - 4, anchor, `${tick} s`));
    }
    top = 0;
    for (const lane of lanes) {
      const name = names[lane.label];
      const left = lane.truths.left + lane.found.left;
      labels.append(drawn("text", { x: 0, y: top + 14, class: "value" }, cut(name, 28), drawn("title", {}, name)));
      if (left) labels.append(text(0, top + 25, "start", `${left} not drawn`));
      const bars = [
        ...lane.truths.placed.map(([bar, row]) => [bar, row, "truth", 1, "ground truth"]),
        ...lane.found.placed.map(([bar, row]) => [bar, row + lane.truths.rows, `k${bar[4]}`, 0.45 + 0.55 * Math.min(Math.max(bar[3], 0), 1),
          `${content.errors.kinds[bar[4]]}, score ${brief(bar[3])}`]),
      ];
      for (const [bar, row, style, opacity, what] of bars) {
        const start = x(bar[1]);
        tracks.append(drawn("rect", {
          class: style, x: start, y: top + 2 + row * ROW, width: Math.max(x(bar[2]) - start, 2), height: ROW - 2, opacity, rx: 1.5,
        }, drawn("title", {}, `${name}\n${what}\n${bar[1]} to ${bar[2]} s`)));
      }
      top += laneHeight(lane);
    }
    return [labels, element("div", {}, tracks)];
  }

  function timelines() {
    const { videos, of, tiou, most } = content.timelines;
    const used = [...new Set(videos.flatMap((video) => [...video.truths, ...video.found].map((bar) => bar[0])))];
    used.sort((a, b) => names[a].localeCompare(names[b]));
    const options = used.map((label) => element("option", { value: label }, cut(names[label], 60)));
    const label = element("select", {}, element("option", { value: "" }, "all"), ...options);
    const id = element("input", { type: "search", placeholder: "part of an id" });
    const score = element("input", { type: "number", step: "any", value: content.first_score });
    const zoom = element("input", { type: "range", min: 1, max: 12, step: 0.5, value: 1 });
    const told = element("span");
    const list = element("div", { class: "videos", tabindex: 0 });
    // A video is drawn when it is about to be seen.
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); entry.target.draw(); }
    }, { root: list, rootMargin: "600px" });

    function block(video, lanes) {
      const shown = lanes.slice(0, MOST_LANES);
      const length = video.duration === null ? "duration unknown" : `${brief(video.duration)} s`;
      const left = [];
      if (lanes.length > shown.length) left.push(`${lanes.length - shown.length} further lanes not drawn`);
      if (video.left_out[0]) left.push(`${count(video.left_out[0])} ground truths not embedded`);
      if (video.left_out[1]) left.push(`${count(video.left_out[1])} detections of lower score not embedded`);
      const tracks = element("div", { class: "tracks" });
      tracks.style.minHeight = `${shown.reduce((sum, lane) => sum + laneHeight(lane), AXIS_ROOM)}px`;
      const node = element("div", { class: "video" }, element("h3", {}, video.id + " ", element("small", {}, [length, ...left].join(", "))), tracks);
      node.draw = () => tracks.append(...drawTracks(video, shown, Math.max(list.clientWidth - NAME_ROOM - 40, 200) * Number(zoom.value)));
      return node;
    }

    function show() {
      const wanted = label.value === "" ? null : Number(label.value);
      const minimum = score.value === "" ? -Infinity : Number(score.value);
      const part = id.value.toLowerCase();
      watcher.disconnect();
      const blocks = [];
      for (const video of videos) {
        if (!video.id.toLowerCase().includes(part)) continue;
        const lanes = lanesOf(video, wanted, minimum);
        if (lanes.length || wanted === null) blocks.push(block(video, lanes));
      }
      list.replaceChildren(...blocks);
      blocks.forEach((node) => watcher.observe(node));
      told.textContent = `${count(blocks.length)} of ${count(videos.length)} videos`;
    }

    for (const control of [label, id, score, zoom]) control.addEventListener("input", show);
    let waiting = 0;
    window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(show, 200); });
    const entries = [["ground truth", "truth"], ...content.errors.kinds.map((name, kind) => [name, `k${kind}`])];
    section("timelines").append(
      note((videos.length < of ? `A sample of ${count(videos.length)} of ${count(of)} videos, evenly spread over the file; all numbers above are of all. ` : "")
        + `Ground truth above, detections below (at most the ${most} best of a video), coloured by their kind at tIoU ${tiou}, paler for lower scores. Point at a bar for its numbers.`),
      element("div", { class: "controls" }, labelled("Class", label), labelled("Video", id), labelled("Minimum score", score), labelled("Stretch", zoom), told),
      legend(entries), list);
    show();
  }

  classTable();
  recallCurves();
  errorAnalysis();
  sensitivityCharts();
  lossCurves();
  timelines();
})();
