// The progress page: what the start waits for, for how long, how far it is, and a way out of it.
"use strict";
(() => {
  const page = document.getElementById("perijove-pending");
  const state = document.getElementById("perijove-state");
  const bar = document.getElementById("progress-bar");
  const stages = [...document.querySelectorAll("#perijove-stages li")];
  const failure = document.getElementById("perijove-failure");
  const cancel = document.getElementById("perijove-cancel");
  const again = document.getElementById("perijove-again");
  const hint = document.getElementById("perijove-hint");
  const log = document.getElementById("perijove-events");
  let began = Date.now();
  let shown = 0;
  let stream = null;
  let over = false;
  let cancelling = false;

  function timeOf(at) {
    const time = typeof at === "number" ? at * 1000 : Date.parse(at);
    return Number.isFinite(time) ? time : Date.now();
  }

  const clock = setInterval(() => {
    const seconds = Math.max(0, Math.floor((Date.now() - began) / 1000));
    const two = (number) => String(number).padStart(2, "0");
    const hours = Math.floor(seconds / 3600);
    const minutes = Math.floor(seconds / 60) % 60;
    document.getElementById("perijove-elapsed").textContent =
      (hours ? `${hours}:${two(minutes)}` : `${minutes}`) + `:${two(seconds % 60)}`;
  }, 500);

  function setProgress(percent) {
    bar.style.width = `${percent}%`;
    bar.parentElement.setAttribute("aria-valuenow", percent);
  }

  function setStage(status, message) {
    // The server starts inside a container that is still being created, as far as statuses go.
    const starting = status === "CREATING" && /^starting/i.test(message || "");
    const now = starting ? stages.length - 1 : stages.findIndex((stage) => stage.dataset.statuses.split(" ").includes(status));
    if (now < 0) return;
    stages.forEach((stage, index) => {
      stage.classList.toggle("done", index < now);
      stage.classList.toggle("current", index === now);
      if (index === now) stage.setAttribute("aria-current", "step");
      else stage.removeAttribute("aria-current");
    });
  }

  function record(message, at) {
    const item = document.createElement("li");
    const when = document.createElement("time");
    const what = document.createElement("span");
    when.dateTime = new Date(at).toISOString();
    when.textContent = new Date(at).toLocaleTimeString();
    what.textContent = message;
    item.append(when, what);
    log.append(item);
    log.scrollTop = log.scrollHeight;
  }

  function close() {
    over = true;
    stream.abort();
    clearInterval(clock);
    cancel.hidden = true;
  }

  function fail(event) {
    close();
    setProgress(100);
    bar.classList.add("bg-danger");
    for (const stage of stages) {
      if (stage.classList.contains("current")) stage.classList.add("failed");
    }
    state.textContent = cancelling ? "The start was cancelled." : "Your server did not start.";
    if (!cancelling) {
      // html_message is written by our Spawner, which escapes everything that it quotes.
      if (event.html_message) failure.innerHTML = event.html_message;
      else failure.textContent = event.message;
      failure.hidden = false;
    }
    again.hidden = false;
    hint.hidden = true;
  }

  function onEvent(event) {
    if (event.ready) {
      close();
      setProgress(100);
      state.textContent = "Your server is ready. Opening it …";
      window.location.reload();
      return;
    }
    if (event.failed) {
      fail(event);
      return;
    }
    const at = event.at === undefined ? Date.now() : timeOf(event.at);
    if (shown === 0 && event.at !== undefined) { began = Math.min(began, at); shown = 1; }
    if (event.progress !== undefined) setProgress(event.progress);
    if (event.status) setStage(event.status, event.message);
    if (event.message && event.status !== undefined && !cancelling) {
      state.textContent = event.message;
      record(event.message, at);
    }
  }

  // Not an EventSource: that cannot see the hub's keep-alives (every 8 s), and a proxy may hold the
  // connection open after the hub behind it has died.
  const LONGEST_SILENCE = 15000;

  async function listen() {
    stream = new AbortController();
    let silence = 0;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => stream.abort(), LONGEST_SILENCE);
    };
    try {
      heard();
      const response = await fetch(page.dataset.progressUrl, {
        credentials: "same-origin",
        signal: stream.signal,
      });
      if (response.ok) {
        log.replaceChildren();
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        let rest = "";
        for (let part = await reader.read(); !part.done && !over; part = await reader.read()) {
          heard();
          const lines = (rest + part.value).split("\n");
          rest = lines.pop();
          for (const line of lines) {
            if (line.startsWith("data:") && !over) onEvent(JSON.parse(line.slice(5)));
          }
        }
      }
    } catch {
      // Broken off: look again below.
    }
    clearTimeout(silence);
    if (!over) setTimeout(look, 1000);
  }

  // The hub was started again, or has nothing to tell any more: what would this page be now?
  async function look() {
    if (over) return;
    try {
      const response = await fetch(window.location.href, { credentials: "same-origin", redirect: "manual" });
      if (response.type === "opaqueredirect") {
        window.location.reload();
        return;
      }
      if (!response.headers.has("X-JupyterHub-Version")) throw new Error("not the hub");
      if (!(await response.text()).includes('id="perijove-pending"')) {
        window.location.reload();
        return;
      }
      listen();
    } catch {
      state.textContent = "The hub does not answer now; your start goes on without it.";
      setTimeout(look, 2000);
    }
  }

  cancel.addEventListener("click", async () => {
    cancelling = true;
    cancel.disabled = true;
    state.textContent = "Cancelling …";
    const response = await fetch(page.dataset.stopUrl, {
      method: "DELETE",
      headers: { "X-XSRFToken": page.dataset.xsrf },
      credentials: "same-origin",
    }).catch(() => null);
    if (response && response.ok) {
      window.location = page.dataset.spawnUrl;
      return;
    }
    cancelling = false;
    cancel.disabled = false;
    state.textContent = "It could not be cancelled. Please try again.";
  });

  listen();
})();
