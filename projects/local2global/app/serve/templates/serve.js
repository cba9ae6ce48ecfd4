"use strict";
// The page of l2g serve: uploads a video or the frames of a camera, shows the newest frame, and changes settings.
const $ = (id) => document.getElementById(id);
const CAMERA_FPS = 12;
let job = null;      // id of the current job
let socket = null;   // frames from the server
let camera = null;   // {stream, timer, socket}
let paused = false;
const known = new Map();  // object id -> list item

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

async function ask(path, options = {}) {
  const response = await fetch(path, { credentials: "same-origin", ...options });
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error || `The server answers ${response.status}.`);
  return content;
}

function settings() {
  const name = $("classes").value;
  return { threshold: Number($("threshold").value) / 100, classes: name ? [name] : null, paused };
}

function showThreshold() {
  $("threshold-text").textContent = (Number($("threshold").value) / 100).toFixed(2);
}

function begin() {
  fail("");
  $("start").hidden = true;
  $("work").hidden = false;
  $("results").hidden = true;
  $("again").hidden = true;
  for (const id of ["pause", "stop", "threshold", "classes"]) $(id).disabled = false;
  setPaused(false);
  known.clear();
  $("found").replaceChildren();
  $("none").hidden = false;
  $("progress").removeAttribute("value");
  $("title").textContent = "";
}

function reset(message) {
  stopCamera();
  job = null;
  $("start").hidden = false;
  $("work").hidden = true;
  $("file").value = "";
  fail(message || "");
  history.replaceState(null, "", "/");
}

function upload(file) {
  begin();
  $("status").textContent = "uploading";
  const request = new XMLHttpRequest();  // fetch reports no progress of uploads
  request.open("POST", "/jobs");
  request.setRequestHeader("X-Filename", encodeURIComponent(file.name));
  request.setRequestHeader("X-Settings", encodeURIComponent(JSON.stringify(settings())));
  request.upload.onprogress = (event) => {
    if (event.lengthComputable) $("progress").value = event.loaded / event.total;
  };
  request.onload = () => {
    let content = {};
    try { content = JSON.parse(request.responseText); } catch { /* not from this server */ }
    if (request.status === 201) watch(content.id);
    else reset(content.error || `The server answers ${request.status}.`);
  };
  request.onerror = () => reset("The upload was interrupted.");
  $("stop").onclick = () => { request.abort(); reset(""); };
  request.send(file);
}

function address(path) {
  return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`;
}

function watch(id) {
  job = id;
  history.replaceState(null, "", `#${id}`);
  $("stop").onclick = () => { stopCamera(); ask(`/jobs/${id}/stop`, { method: "POST" }).catch((e) => fail(e.message)); };
  socket = new WebSocket(address(`/jobs/${id}/frames`));
  socket.binaryType = "arraybuffer";
  let ended = false;
  socket.onmessage = async (event) => {
    const bytes = new Uint8Array(event.data);
    const cut = bytes.indexOf(10);
    const about = JSON.parse(new TextDecoder().decode(bytes.subarray(0, cut)));
    ended = about.state === "done" || about.state === "failed";
    update(about);
    if (cut + 1 < bytes.length) draw(new Blob([bytes.subarray(cut + 1)], { type: "image/jpeg" }));
  };
  socket.onclose = (event) => {
    if (ended || job !== id) return;
    if (event.code === 4004) reset("This video is no longer on the server.");
    else setTimeout(() => { if (job === id) watch(id); }, 1000);
  };
}

async function draw(blob) {
  const image = await createImageBitmap(blob);
  const view = $("view");
  if (view.width !== image.width || view.height !== image.height) [view.width, view.height] = [image.width, image.height];
  view.getContext("2d").drawImage(image, 0, 0);
  image.close();
}

function update(about) {
  const { state, frame, frames, position } = about;
  $("title").textContent = about.title;
  if (frames) { $("progress").max = 1; $("progress").value = frame / frames; }
  else if (state === "running") $("progress").removeAttribute("value");
  const of = frames ? `${frame} of ${frames} frames` : `${frame} frames`;
  $("status").textContent =
    state === "waiting" ? (position ? `waiting: ${position} ahead` : "waiting") :
    state === "running" ? (about.paused ? `paused, ${of}` : of) :
    state === "done" ? `done, ${frame} frames` : "failed";
  objects(about);
  if (state === "done" || state === "failed") finish(about);
}

function objects(about) {
  const scores = new Map(about.objects.map((item) => [item.id, item.score]));
  $("none").hidden = about.known.length > 0;
  $("none").textContent = about.state === "done" ? "No object was found; a lower score may find some." : "No object yet.";
  for (const item of about.known) {
    let entry = known.get(item.id);
    if (!entry) {
      entry = document.createElement("li");
      const image = document.createElement("img");
      image.src = `/jobs/${job}/objects/${item.id}.jpg`;
      image.alt = "";
      const name = document.createElement("b");
      name.textContent = `${item.id} ${item.name}`;
      entry.append(image, document.createElement("span"), name);
      entry.style.setProperty("--color", item.color);
      known.set(item.id, entry);
      $("found").append(entry);
    }
    const score = scores.get(item.id);
    entry.classList.toggle("away", score === undefined && about.state === "running");
    entry.querySelector("span").textContent = score === undefined ? "" : score.toFixed(2);
  }
}

function finish(about) {
  if (about.state === "failed" && !about.frame) {
    reset(about.message || "The video could not be processed.");
    return;
  }
  stopCamera();
  for (const id of ["pause", "stop", "threshold", "classes"]) $(id).disabled = true;
  $("again").hidden = false;
  if (about.state === "failed") fail(about.message || "The video could not be processed.");
  $("progress").max = 1;
  $("progress").value = about.state === "done" ? 1 : 0;
  $("results").hidden = about.files.length === 0;
  const link = (name) => `/jobs/${job}/files/${encodeURIComponent(name)}`;
  $("report").hidden = !about.files.includes("report.html");
  $("report").href = link("report.html");
  $("files").replaceChildren(...about.files.filter((name) => !name.startsWith("report")).map((name) => {
    const entry = document.createElement("li");
    const anchor = document.createElement("a");
    anchor.href = link(name);
    anchor.download = name;
    anchor.textContent = name;
    entry.append(anchor);
    return entry;
  }));
}

function setPaused(value) {
  paused = value;
  $("pause").setAttribute("aria-pressed", String(value));
  $("pause").textContent = value ? "Continue" : "Pause";
}

let sending = null;
function changed() {
  showThreshold();
  clearTimeout(sending);
  sending = setTimeout(() => {
    if (job) ask(`/jobs/${job}`, { method: "POST", body: JSON.stringify(settings()) }).catch((e) => fail(e.message));
  }, 100);
}

async function startCamera() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } }, audio: false });
  } catch (error) {
    fail(navigator.mediaDevices ? `No camera: ${error.message}` : "The browser gives cameras to https pages and localhost only.");
    return;
  }
  begin();
  let id;
  try {
    id = (await ask("/camera", { method: "POST" })).id;
  } catch (error) {
    stream.getTracks().forEach((track) => track.stop());
    reset(error.message);
    return;
  }
  const video = document.createElement("video");
  video.srcObject = stream;
  video.muted = true;
  await video.play();
  const canvas = document.createElement("canvas");
  const sender = new WebSocket(address(`/jobs/${id}/camera`));
  const timer = setInterval(() => {
    if (sender.readyState !== 1 || sender.bufferedAmount > 0 || !video.videoWidth || paused) return;
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => { if (blob && sender.readyState === 1) sender.send(blob); }, "image/jpeg", 0.8);
  }, 1000 / CAMERA_FPS);
  camera = { stream, timer, socket: sender };
  watch(id);
  changed();
}

function stopCamera() {
  if (!camera) return;
  clearInterval(camera.timer);
  camera.stream.getTracks().forEach((track) => track.stop());
  camera.socket.close();
  camera = null;
}

$("file").onchange = () => { if ($("file").files.length) upload($("file").files[0]); };
$("camera").onclick = startCamera;
$("pause").onclick = () => { setPaused(!paused); changed(); };
$("again").onclick = () => reset("");
$("threshold").oninput = changed;
$("classes").onchange = changed;
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.remove("over"); });
}
document.addEventListener("drop", (event) => {
  const file = event.dataTransfer.files[0];
  if (file && !job) upload(file);
});
showThreshold();
if (location.hash.length > 1) { begin(); watch(location.hash.slice(1)); }  // a reload shows the same video
