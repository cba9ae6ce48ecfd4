// The page: connects the player with the table of objects, the filters and the lists of moments.

async function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const inside = document.getElementById("video");
  const url = inside
    ? URL.createObjectURL(new Blob([decodeBase64(inside.textContent.trim())], {type: "video/mp4"}))
    : data.video;
  const root = document.getElementById("viewer");
  const player = new Player(root, data, await unpack(data.code), url);
  const rows = [...document.querySelectorAll("tr.object")];
  let picked = null;

  const follow = row => {
    const shown = row === null ? picked : row;
    player.highlight(shown);
    rows.forEach(tr => tr.classList.toggle("active", Number(tr.dataset.row) === shown));
  };
  const pick = row => {
    picked = picked === row ? null : row;
    rows.forEach(tr => tr.querySelector(".pick").setAttribute("aria-pressed", Number(tr.dataset.row) === picked));
    follow(null);
  };
  root.addEventListener("hover", event => follow(event.detail));
  root.addEventListener("pick", event => {
    pick(event.detail);
    rows.find(tr => Number(tr.dataset.row) === event.detail).scrollIntoView({block: "nearest"});
  });

  for (const tr of rows) {
    const row = Number(tr.dataset.row);
    tr.addEventListener("pointerenter", () => follow(row));
    tr.addEventListener("pointerleave", () => follow(null));
    tr.addEventListener("focusin", () => follow(row));
    tr.addEventListener("focusout", () => follow(null));
    tr.querySelector(".pick").addEventListener("click", () => {
      pick(row);
      if (picked === row && tr.dataset.best) player.seek(Number(tr.dataset.best));
    });
    for (const lane of tr.querySelectorAll(".lane")) {
      lane.addEventListener("click", event => {
        const bounds = lane.getBoundingClientRect();
        player.seekFraction((event.clientX - bounds.left) / bounds.width);
      });
    }
  }
  for (const button of document.querySelectorAll("button[data-frame]")) {
    button.addEventListener("click", event => {
      event.stopPropagation();
      player.video.pause();
      player.seek(Number(button.dataset.frame));
    });
  }

  // Playheads: only those on the screen move.
  const heads = new Set();
  const place = head => { head.style.left = `${100 * player.fraction(player.frame)}%`; };
  const observer = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (entry.isIntersecting) { heads.add(entry.target); place(entry.target.firstElementChild); }
      else heads.delete(entry.target);
    }
  });
  for (const lane of document.querySelectorAll(".lane")) observer.observe(lane);
  root.addEventListener("frame", () => heads.forEach(lane => place(lane.firstElementChild)));
  window.addEventListener("beforeprint", () => player.video.pause());

  if (rows.length) {
    bindFilter(rows, player);
    bindSort(rows);
  }
  const queries = document.getElementById("queries");
  if (queries) {
    player.queries = JSON.parse(new TextDecoder().decode(await unpack(queries.textContent.trim())));
    player.draw();
  }
  window.player = player;
}

function bindFilter(rows, player) {
  const form = document.getElementById("filter"), count = document.getElementById("count");
  const apply = () => {
    const {category, score, least} = form.elements;
    const matches = tr => (!category.value || tr.dataset.name === category.value)
      && Number(tr.dataset.score) >= Number(score.value) / 100
      && Number(tr.dataset.frames) >= Number(least.value || 0);
    const shown = new Set();
    for (const tr of rows) {
      tr.hidden = !matches(tr);
      if (!tr.hidden) shown.add(Number(tr.dataset.row));
    }
    document.getElementById("score-text").textContent = (Number(score.value) / 100).toFixed(2);
    count.textContent = shown.size === rows.length ? `${rows.length} objects` : `${shown.size} of ${rows.length} objects`;
    player.show(row => shown.has(row));
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", event => event.preventDefault());
  apply();
}

function bindSort(rows) {
  const body = document.querySelector("#objects tbody"), heads = [...document.querySelectorAll("th[data-sort]")];
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const key = head.dataset.sort, up = head.getAttribute("aria-sort") !== "ascending";
      const value = tr => key === "name" ? tr.dataset.name : Number(tr.dataset[key]);
      const compare = (a, b) => {
        const x = value(a), y = value(b);
        return (x < y ? -1 : x > y ? 1 : Number(a.dataset.row) - Number(b.dataset.row)) * (up ? 1 : -1);
      };
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...rows.sort(compare));
    });
  }
}

start();
