// A player that draws masks over a video.  Self-contained: it builds its own controls inside an element.
//
//   const player = new Player(element, data, await unpack(data.code), videoUrl);
//   player.seek(12); player.highlight(3); player.show(row => row < 5);
//   element.addEventListener("frame", event => event.detail);  // also "hover" and "pick", with a row or null
//
// data: size [width, height] in pixels, unit (pixels per grid unit), frames, panels (names), rows (color, label),
// tracks ([panel, row] in the order of the code), drawn (the video already shows masks).
"use strict";

async function unpack(base64) {
  const stream = new Blob([decodeBase64(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function decodeBase64(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// Reads the numbers that page.py: encode_identity writes.
class Reader {
  constructor(bytes) { this.bytes = bytes; this.at = 0; }
  number() {
    let value = 0, factor = 1, byte;
    do { byte = this.bytes[this.at++]; value += (byte & 127) * factor; factor *= 128; } while (byte > 127);
    return value;
  }
  signed() { const value = this.number(); return value % 2 ? -(value + 1) / 2 : value / 2; }
  sums(count) {
    const out = new Int32Array(count);
    for (let i = 0, sum = 0; i < count; i++) out[i] = sum += this.signed();
    return out;
  }
  rings() {
    const rings = [];
    let x = 0, y = 0;
    for (let n = this.number(); n > 0; n--) {
      const points = new Int32Array(2 * this.number());
      for (let i = 0; i < points.length; i += 2) {
        points[i] = x += this.signed();
        points[i + 1] = y += this.signed();
      }
      rings.push(points);
    }
    return rings;
  }
  track() {
    const spans = [];
    let frame = 0, count = 0;
    for (let n = this.number(); n > 0; n--) {
      frame += this.number();
      const length = this.number();
      spans.push({first: frame, last: frame + length - 1, offset: count});
      frame += length;
      count += length;
    }
    const scores = this.bytes.subarray(this.at, this.at += count);
    const box = [0, 1, 2, 3].map(() => this.sums(count));
    const keys = [], outlines = [];
    for (let n = this.number(), last = 0; n > 0; n--) {
      keys.push(last += this.number());
      outlines.push(this.rings());
    }
    return {spans, scores, box, keys, outlines};
  }
}

// Index of the last entry that is at most `value`, or -1.
function lastAtMost(array, value, get = x => x) {
  let low = 0, high = array.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (get(array[middle]) <= value) low = middle + 1; else high = middle;
  }
  return low - 1;
}

// Position of a frame among the frames with a report, or -1.
function positionOf(track, frame) {
  const span = track.spans[lastAtMost(track.spans, frame, s => s.first)];
  return span && frame <= span.last ? span.offset + frame - span.first : -1;
}

// The outline nearest in time, moved and scaled to the box of the position, in grid units.
function outlineAt(track, position) {
  let key = lastAtMost(track.keys, position);
  if (key + 1 < track.keys.length && track.keys[key + 1] - position < position - track.keys[key]) key++;
  const from = track.keys[key], [left, top, right, bottom] = track.box;
  const scale = (low, high) => (high[position] - low[position]) / Math.max(1, high[from] - low[from]);
  const sx = scale(left, right), sy = scale(top, bottom);
  return track.outlines[key].map(ring => {
    const moved = new Float32Array(ring.length);
    for (let i = 0; i < ring.length; i += 2) {
      moved[i] = left[position] + (ring[i] - left[from]) * sx;
      moved[i + 1] = top[position] + (ring[i + 1] - top[from]) * sy;
    }
    return moved;
  });
}

class Player {
  constructor(root, data, bytes, videoUrl) {
    this.root = root;
    this.data = data;
    const reader = new Reader(bytes);
    this.edges = [0];  // start of every frame and end of the last, in milliseconds
    for (let i = 0; i < data.frames; i++) this.edges.push(this.edges[i] + reader.signed());
    this.tracks = data.tracks.map(([panel, row]) => ({panel, row, ...reader.track()}));
    this.frame = 0;
    this.row = null;
    this.visible = () => true;
    this.masks = this.labels = true;
    this.build(videoUrl);
    this.resize = new ResizeObserver(() => this.draw());
    this.canvases.forEach(canvas => this.resize.observe(canvas));
    this.seek(0);
  }

  build(videoUrl) {
    const make = (tag, properties = {}, parent = this.root) => {
      const element = Object.assign(document.createElement(tag), properties);
      parent.append(element);
      return element;
    };
    this.root.classList.add("player");
    const [width, height] = this.data.size;
    const panels = make("div", {className: "panels"});
    panels.style.setProperty("--panels", this.data.panels.length);
    panels.style.setProperty("--ratio", width / height);
    this.canvases = this.data.panels.map(name => {
      const figure = make("figure", {}, panels);
      if (this.data.panels.length > 1) make("figcaption", {textContent: name}, figure);
      const canvas = make("canvas", {}, figure);
      canvas.style.aspectRatio = `${width} / ${height}`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Video with masks: ${name}`);
      const panel = this.data.panels.indexOf(name);
      canvas.addEventListener("pointermove", event => this.emit("hover", this.hit(panel, event)));
      canvas.addEventListener("pointerleave", () => this.emit("hover", null));
      canvas.addEventListener("click", event => {
        const row = this.hit(panel, event);
        if (row === null) this.toggle(); else this.emit("pick", row);
      });
      return canvas;
    });
    this.video = make("video", {muted: true, playsInline: true, preload: "auto", src: videoUrl});
    this.video.setAttribute("aria-hidden", "true");
    this.video.tabIndex = -1;

    const bar = make("div", {className: "controls"});
    this.playButton = make("button", {type: "button", className: "play", onclick: () => this.toggle()}, bar);
    this.slider = make("input", {type: "range", min: 0, max: this.data.frames - 1, step: 1}, bar);
    this.slider.setAttribute("aria-label", "Frame");
    this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
    this.slider.addEventListener("keydown", event => {
      if (event.key === " ") { event.preventDefault(); this.toggle(); }
    });
    this.clock = make("span", {className: "clock"}, bar);
    this.number = make("span", {className: "clock frame"}, bar);
    const speed = make("select", {}, bar);
    speed.setAttribute("aria-label", "Speed");
    for (const rate of [0.25, 0.5, 1, 2]) make("option", {value: rate, textContent: `${rate}×`, selected: rate === 1}, speed);
    speed.addEventListener("change", () => { this.video.playbackRate = Number(speed.value); });
    for (const [name, text] of [["masks", "Masks"], ["labels", "Labels"]]) {
      if (this.data.drawn) continue;  // the video shows both
      const label = make("label", {}, bar);
      make("input", {type: "checkbox", checked: true, onchange: event => {
        this[name] = event.target.checked;
        this.draw();
      }}, label);
      label.append(` ${text}`);
    }
    for (const event of ["play", "pause", "ended"]) this.video.addEventListener(event, () => this.updateButton());
    this.video.addEventListener("seeked", () => this.draw());
    this.video.addEventListener("loadeddata", () => this.seek(this.frame));
    this.video.addEventListener("ended", () => this.moved(this.data.frames - 1));
    this.follow();
    this.updateButton();
  }

  // Draws every frame that the video shows, with its own time stamp.
  follow() {
    if ("requestVideoFrameCallback" in HTMLVideoElement.prototype) {
      const next = (_, meta) => {
        if (!this.video.paused) this.moved(this.frameAt(meta.mediaTime * 1000)); else this.draw();
        this.video.requestVideoFrameCallback(next);
      };
      this.video.requestVideoFrameCallback(next);
    } else {
      const next = () => {
        if (!this.video.paused) this.moved(this.frameAt(this.video.currentTime * 1000));
        requestAnimationFrame(next);
      };
      requestAnimationFrame(next);
    }
  }

  frameAt(milliseconds) {
    return Math.min(Math.max(lastAtMost(this.edges, milliseconds + 1), 0), this.data.frames - 1);
  }

  // Fraction of the duration at which a frame starts.
  fraction(frame) { return this.edges[frame] / this.edges[this.data.frames]; }

  seek(frame) {
    frame = Math.min(Math.max(Math.round(frame), 0), this.data.frames - 1);
    const middle = (this.edges[frame] + this.edges[frame + 1]) / 2;
    if (this.video.readyState) this.video.currentTime = Math.min(middle, this.edges[frame] + 20) / 1000;
    this.moved(frame);
  }

  seekFraction(fraction) { this.seek(this.frameAt(fraction * this.edges[this.data.frames])); }

  toggle() {
    if (!this.video.paused) return this.video.pause();
    if (this.frame === this.data.frames - 1) this.seek(0);
    this.video.play().catch(() => {});
  }

  highlight(row) {
    if (row === this.row) return;
    this.row = row;
    this.draw();
  }

  show(visible) {
    this.visible = visible;
    this.draw();
  }

  moved(frame) {
    this.frame = frame;
    const text = `${clockText(this.edges[frame])} / ${clockText(this.edges[this.data.frames])}`;
    this.slider.value = frame;
    this.slider.setAttribute("aria-valuetext", `${clockText(this.edges[frame])}, frame ${frame}`);
    this.clock.textContent = text;
    this.number.textContent = `frame ${frame}`;
    this.draw();
    this.emit("frame", frame);
  }

  updateButton() {
    const paused = this.video.paused;
    this.playButton.textContent = paused ? "▶" : "❚❚";
    this.playButton.setAttribute("aria-label", paused ? "Play" : "Pause");
  }

  emit(name, detail) { this.root.dispatchEvent(new CustomEvent(name, {detail})); }

  // The masks of a panel on the current frame, largest first: {row, position, track, path, area}.
  shapes(panel) {
    const shapes = [];
    for (const track of this.tracks) {
      if (track.panel !== panel || !this.visible(track.row)) continue;
      const position = positionOf(track, this.frame);
      if (position < 0) continue;
      const path = new Path2D();
      for (const ring of outlineAt(track, position)) {
        for (let i = 0; i < ring.length; i += 2) path[i ? "lineTo" : "moveTo"](ring[i], ring[i + 1]);
        path.closePath();
      }
      const [left, top, right, bottom] = track.box.map(edge => edge[position]);
      shapes.push({row: track.row, track, position, path, left, top, area: (right - left) * (bottom - top)});
    }
    return shapes.sort((a, b) => b.area - a.area);
  }

  draw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = null;
      this.canvases.forEach((canvas, panel) => this.drawPanel(canvas, panel));
    });
  }

  drawPanel(canvas, panel) {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (this.video.readyState > 1) context.drawImage(this.video, 0, 0, width, height);
    const scale = width / this.data.size[0] * this.data.unit;  // canvas pixels per grid unit
    const shapes = this.shapes(panel);
    for (const shape of shapes) {
      const chosen = shape.row === this.row, dimmed = this.row !== null && !chosen;
      if (!chosen && (this.data.drawn || !this.masks)) continue;
      const color = this.data.rows[shape.row].color.join(" ");
      context.setTransform(scale, 0, 0, scale, 0, 0);
      context.fillStyle = `rgb(${color} / ${chosen ? 0.6 : dimmed ? 0.12 : 0.4})`;
      context.fill(shape.path, "evenodd");
      context.lineJoin = "round";
      if (chosen) {
        context.strokeStyle = "white";
        context.lineWidth = 5 * ratio / scale;
        context.stroke(shape.path);
      }
      context.strokeStyle = `rgb(${color} / ${dimmed ? 0.35 : 1})`;
      context.lineWidth = (chosen ? 2.5 : 1.5) * ratio / scale;
      context.stroke(shape.path);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    const labelled = shapes.filter(s => s.row === this.row || (this.labels && !this.data.drawn && this.row === null));
    for (const shape of labelled) this.drawLabel(context, shape, scale, ratio);
    if (this.queries && this.row !== null) this.drawQueries(context, ratio);
  }

  // Where the model looked for the highlighted object: boxes of local queries, and sampling points.
  // queries: by frame, {number: [[cx, cy, w, h, weight, ...], [x, y, weight, ...]]} in 1/1000.
  drawQueries(context, ratio) {
    const found = (this.queries[this.frame] || {})[this.data.rows[this.row].number];
    if (!found) return;
    const {width, height} = context.canvas, [boxes, points] = found.map(list => list.map(value => value / 1000));
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    context.textBaseline = "bottom";
    for (let i = 0; i < boxes.length; i += 5) {
      const [cx, cy, w, h, weight] = boxes.slice(i, i + 5), strong = Math.min(1, 0.35 + weight);
      const place = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height];
      for (const [color, dash] of [["black", []], ["white", [5 * ratio, 4 * ratio]]]) {
        context.setLineDash(dash);
        context.strokeStyle = color;
        context.globalAlpha = strong;
        context.lineWidth = (1 + 3 * weight) * ratio;
        context.strokeRect(...place);
      }
      context.setLineDash([]);
      context.globalAlpha = 1;
      context.lineWidth = 3 * ratio;
      context.strokeStyle = "black";
      context.fillStyle = "white";
      const at = [place[0] + 3 * ratio, Math.min(place[1] + place[3], height) - 2 * ratio];
      context.strokeText(`${Math.round(weight * 100)} %`, ...at);
      context.fillText(`${Math.round(weight * 100)} %`, ...at);
    }
    for (let i = 0; i < points.length; i += 3) {
      const [x, y, weight] = points.slice(i, i + 3);
      context.beginPath();
      context.arc(x * width, y * height, (1.5 + 12 * weight) * ratio, 0, 2 * Math.PI);
      context.fillStyle = "#ffd60a";
      context.fill();
      context.lineWidth = ratio;
      context.stroke();
    }
  }

  drawLabel(context, shape, scale, ratio) {
    const {color, label} = this.data.rows[shape.row], size = 12 * ratio;
    context.font = `600 ${size}px system-ui, sans-serif`;
    const text = `${label} ${(shape.track.scores[shape.position] / 255).toFixed(2)}`;
    const width = context.measureText(text).width + 8 * ratio, height = size + 6 * ratio;
    const x = Math.min(Math.max(shape.left * scale, 0), Math.max(0, context.canvas.width - width));
    const y = Math.min(Math.max(shape.top * scale - height, 0), context.canvas.height - height);
    context.fillStyle = `rgb(${color.join(" ")})`;
    context.fillRect(x, y, width, height);
    context.fillStyle = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 128 ? "black" : "white";
    context.textBaseline = "middle";
    context.fillText(text, x + 4 * ratio, y + height / 2);
  }

  // The row of the smallest mask under the pointer, or null.
  hit(panel, event) {
    const canvas = this.canvases[panel], bounds = canvas.getBoundingClientRect();
    const unit = this.data.size[0] / bounds.width / this.data.unit;
    const x = (event.clientX - bounds.left) * unit, y = (event.clientY - bounds.top) * unit;
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    const found = this.shapes(panel).filter(s => context.isPointInPath(s.path, x, y, "evenodd")).pop();
    return found ? found.row : null;
  }
}

function clockText(milliseconds) {
  const tenths = Math.round(milliseconds / 100);
  return `${Math.floor(tenths / 600)}:${(tenths % 600 / 10).toFixed(1).padStart(4, "0")}`;
}
