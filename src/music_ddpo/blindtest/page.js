// The page of the listening test. It knows the clips as A and B only.
"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const sounds = { a: new Audio(), b: new Audio() };
  const players = [...document.querySelectorAll("[data-side]")];
  const answers = [...document.querySelectorAll("[data-answer]")];
  let session = null;
  let rater = null;
  let pair = null; // what the server said of the present pair
  let heard = { a: 0, b: 0 }; // seconds that each clip was played for
  let began = 0;
  let sending = false;
  let latest = null; // the side that was played last
  let wanted = null; // the side that is to be played when it has been loaded
  let latestVote = null; // its number, which can be taken back
  let stopped = 0; // when the pause began
  let paused = 0; // seconds of this pair in which nothing was played

  const now = () => performance.now() / 1000;
  const playing = () => Object.keys(sounds).find((side) => !sounds[side].paused);
  const needed = (side) => Math.min(pair.heard, sounds[side].duration || pair.heard);
  const say = (text) => {
    if (get("wait").textContent !== text) get("wait").textContent = text; // a screen reader reads each change
  };
  const enough = () => pair && ["a", "b"].every((side) => heard[side] >= needed(side) - 0.05);

  async function post(path, content) {
    get("error").textContent = "";
    let response;
    try {
      response = await fetch(path, { method: "POST", body: JSON.stringify(content) });
    } catch {
      throw new Error("The test's program does not answer. Start it again; your votes are stored.");
    }
    const told = await response.json().catch(() => ({ error: "The test's program gave no answer; try again." }));
    if (response.status === 409 && rater && path !== "/start") {
      // The program was started again. What it has stored is stored; the present pair has to be heard again.
      const state = await post("/start", { rater });
      session = state.session;
      return state;
    }
    if (!response.ok) throw new Error(told.error);
    return told;
  }

  function stop() {
    for (const sound of Object.values(sounds)) sound.pause();
    show();
  }

  // Whole in memory, so that a change of sides is in time whatever the server can do.
  async function load(side, path) {
    const mine = pair;
    try {
      const response = await fetch(path);
      if (!response.ok) throw new Error((await response.json()).error);
      const content = await response.blob();
      if (pair !== mine) return;
      sounds[side].src = URL.createObjectURL(content);
      if (wanted === side) play(side);
    } catch (error) {
      get("error").textContent = error.message;
    }
  }

  function play(side) {
    const other = sounds[side === "a" ? "b" : "a"];
    const time = other.paused ? 0 : other.currentTime;
    other.pause();
    wanted = sounds[side].src ? null : side; // is played when it has been loaded
    if (wanted) return;
    sounds[side].currentTime = time;
    if (stopped) paused += now() - stopped;
    stopped = 0;
    began ||= now();
    latest = side;
    sounds[side].play().then(show, (error) => {
      if (error.name !== "AbortError") get("error").textContent = "This clip cannot be played.";
      show();
    });
  }

  function show() {
    for (const button of players) button.setAttribute("aria-pressed", String(button.dataset.side === playing()));
    for (const button of answers) button.disabled = !enough() || sending;
    get("undo").hidden = latestVote === null;
    if (pair) say(enough() ? "You can choose now." : `Listen to both for ${Math.round(10 * Math.max(needed("a"), needed("b"))) / 10} seconds.`);
  }

  function next(state) {
    stop();
    pair = state.number === null ? null : state;
    heard = { a: 0, b: 0 };
    began = paused = stopped = 0;
    latest = wanted = null;
    latestVote = state.latest;
    get("error").textContent = "";
    get("start").hidden = true;
    get("test").hidden = !pair;
    get("end").hidden = Boolean(pair);
    get("progress").max = state.all;
    get("progress").value = state.done;
    get("done").textContent = `${state.done} of ${state.all}`;
    if (pair) {
      get("question").textContent = pair.question;
      for (const side of ["a", "b"]) {
        URL.revokeObjectURL(sounds[side].src);
        sounds[side].removeAttribute("src");
        load(side, `/clip/${session}/${pair.number}/${side}`);
      }
      get("question").focus();
    } else {
      get("end").querySelector("h2").focus();
    }
    show();
  }

  async function send(path, content) {
    if (sending) return;
    sending = true;
    show();
    try {
      next(await post(path, { session, ...content }));
    } catch (error) {
      get("error").textContent = error.message;
    } finally {
      sending = false;
      show();
    }
  }

  function answer(choice) {
    if (enough() && !stopped) send("/vote", { number: pair.number, answer: choice, heard: [heard.a, heard.b], seconds: now() - began - paused });
  }

  // what is counted is the time that passes while a clip sounds
  let last = now();
  setInterval(() => {
    const passed = now() - last;
    last = now();
    const side = playing();
    if (side && sounds[side].currentTime > 0) heard[side] += Math.min(passed, 0.5);
    show();
  }, 100);

  get("start").addEventListener("submit", async (event) => {
    event.preventDefault();
    rater = new FormData(get("start")).get("rater");
    try {
      const state = await post("/start", { rater });
      session = state.session;
      next(state);
    } catch (error) {
      get("error").textContent = error.message;
    }
  });
  for (const button of players) button.addEventListener("click", () => (playing() === button.dataset.side ? stop() : play(button.dataset.side)));
  for (const button of answers) button.addEventListener("click", () => answer(button.dataset.answer));
  get("undo").addEventListener("click", () => send("/undo", { number: latestVote }));
  get("pause").addEventListener("click", () => {
    if (began && !stopped) stopped = now();
    stop();
  });
  for (const sound of Object.values(sounds)) sound.addEventListener("ended", show);
  document.addEventListener("keydown", (event) => {
    if (!pair || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input")) return;
    const keys = { 1: () => answer("a"), 2: () => answer("b"), 0: () => answer("tie"), x: () => answer("bad") };
    if (event.key === " " && !event.target.closest("button")) keys[" "] = () => play(latest === "a" ? "b" : "a");
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
})();
