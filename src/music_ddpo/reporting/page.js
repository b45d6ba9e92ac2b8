// The players of the page. All clips of a card play at once and all but one are silent, so that a switch is in time.
"use strict";
(() => {
  const list = document.getElementById("cards");
  const cards = [...list.children];
  const filters = document.getElementById("filters");
  const shown = document.getElementById("shown");
  let current = null; // the card that was played last
  let chosen = 0; // the number of the model that is heard

  const tracks = (card) => [...card.querySelectorAll(".track")];
  const audio = (card, i = chosen) => tracks(card)[i].querySelector("audio");
  const playing = () => current !== null && !audio(current).paused;
  const visible = () => cards.filter((card) => !card.hidden).sort((a, b) => a.offsetTop - b.offsetTop);

  function show() {
    for (const card of cards) {
      tracks(card).forEach((track, i) => {
        track.querySelector(".play").setAttribute("aria-pressed", String(card === current && i === chosen && playing()));
      });
      card.classList.toggle("current", card === current);
    }
  }

  function stop() {
    if (current) for (const sound of current.querySelectorAll("audio")) sound.pause();
    show();
  }

  // From a web host a clip is read whole first, so that it can be sought in whatever the host can do.
  async function load(card) {
    if (!location.protocol.startsWith("http")) return;
    await Promise.all(
      [...card.querySelectorAll("audio")].map(async (sound) => {
        if (!sound.src.startsWith("blob:")) sound.src = URL.createObjectURL(await (await fetch(sound.src)).blob());
      }),
    ).catch(() => {}); // then it is streamed
  }

  async function play(card, model) {
    await load(card);
    const time = card === current ? audio(card).currentTime : 0;
    if (card !== current) stop();
    current = card;
    chosen = model;
    tracks(card).forEach((track, i) => {
      const sound = track.querySelector("audio");
      sound.muted = i !== model;
      if (Math.abs(sound.currentTime - time) > 0.02 && !sound.ended) sound.currentTime = time;
      if (sound.paused) sound.play().catch(() => show());
    });
    show();
  }

  function toggle(card, model) {
    if (card === current && model === chosen && playing()) stop();
    else play(card, model);
  }

  function seek(card, time) {
    for (const sound of card.querySelectorAll("audio")) {
      if (Number.isFinite(sound.duration)) sound.currentTime = Math.min(Math.max(time, 0), sound.duration - 0.01);
    }
  }

  function move() {
    if (current) {
      const sound = audio(current);
      const share = Number.isFinite(sound.duration) ? sound.currentTime / sound.duration : 0;
      for (const cursor of current.querySelectorAll(".cursor")) cursor.style.left = `${100 * share}%`;
    }
    requestAnimationFrame(move);
  }

  function go(card) {
    if (!card) return;
    const was = playing();
    stop();
    current = card;
    card.scrollIntoView({ block: "start" });
    card.querySelector("h3").focus({ preventScroll: true });
    if (was) play(card, chosen);
    show();
  }

  function step(by) {
    const found = visible();
    go(found[current ? Math.min(Math.max(found.indexOf(current) + by, 0), found.length - 1) : 0]);
  }

  function random() {
    const found = visible();
    go(found[Math.floor(Math.random() * found.length)]);
  }

  function apply() {
    const value = Object.fromEntries(new FormData(filters));
    for (const card of cards) {
      const state = JSON.parse(card.dataset.states)[value.adapter];
      card.hidden = Boolean(
        (value.emotion && card.dataset.emotion !== value.emotion) ||
          (value.instrument && card.dataset.instrument !== value.instrument) ||
          (value.state && state !== value.state),
      );
    }
    const change = (card) => JSON.parse(card.dataset.changes)[value.adapter];
    const orders = {
      number: (a, b) => a.dataset.number - b.dataset.number,
      best: (a, b) => change(b) - change(a),
      worst: (a, b) => change(a) - change(b),
    };
    list.append(...[...cards].sort(orders[value.order]));
    if (current && current.hidden) {
      stop();
      current = null;
      show();
    }
    shown.textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} clips`;
  }

  for (const card of cards) {
    tracks(card).forEach((track, i) => {
      const sound = track.querySelector("audio");
      track.querySelector(".play").addEventListener("click", () => toggle(card, i));
      track.querySelector(".picture").addEventListener("click", (event) => {
        const box = event.currentTarget.getBoundingClientRect();
        const share = (event.clientX - box.left) / box.width;
        play(card, i).then(() => seek(card, share * (sound.duration || 0)));
      });
      for (const name of ["ended", "pause", "playing"]) sound.addEventListener(name, show);
    });
  }
  filters.addEventListener("change", apply);
  document.getElementById("random").addEventListener("click", random);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, summary, pre")) return;
    const card = event.target.closest(".card") || current || visible()[0];
    if (!card || !document.getElementById("keys").checked) return;
    const models = tracks(card).length;
    const keys = {
      x: () => play(card, (chosen + 1) % models),
      n: () => step(1),
      p: () => step(-1),
      r: random,
    };
    if (event.target.closest(".card")) {
      keys.ArrowLeft = () => seek(card, audio(card).currentTime - 1);
      keys.ArrowRight = () => seek(card, audio(card).currentTime + 1);
    }
    if (event.key === " " && !event.target.closest("button, a")) keys[" "] = () => toggle(card, chosen);
    if (/^[1-9]$/.test(event.key) && event.key <= models) keys[event.key] = () => play(card, event.key - 1);
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("figure details")) details.open = true;
  });
  apply();
  move();
})();
