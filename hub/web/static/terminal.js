// A terminal on a shell of the session: xterm.js on the manager's WebSocket for terminals.
"use strict";

(() => {
  const page = document.getElementById("perijove-terminal-page");
  const state = document.getElementById("perijove-terminal-state");
  const again = document.getElementById("perijove-terminal-again");
  const CHUNK = 16384;

  if (!window.Terminal || !window.FitAddon) {
    state.textContent = "The terminal's files are missing on the server: scripts/up installs them.";
    return;
  }

  const terminal = new Terminal({
    cursorBlink: true,
    fontFamily: "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace",
    fontSize: 14,
    scrollback: 5000,
    theme: { background: "#111111" },
  });
  const fit = new FitAddon.FitAddon();
  terminal.loadAddon(fit);
  terminal.open(document.getElementById("perijove-terminal"));
  fit.fit();

  let socket = null;

  function send(message) {
    if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  }

  function sendBytes(bytes) {
    for (let at = 0; at < bytes.length; at += CHUNK) {
      const text = String.fromCharCode(...bytes.subarray(at, at + CHUNK));
      send({ type: "stdin", chars: btoa(text) });
    }
  }

  const sendSize = () => send({ type: "resize", rows: terminal.rows, cols: terminal.cols });
  const bytesOf = (text) => Uint8Array.from(text, (each) => each.charCodeAt(0));

  function ended(text) {
    state.textContent = text;
    again.hidden = false;
    again.focus();
  }

  function connect() {
    const address = new URL(page.dataset.socket, location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    // A WebSocket sends no headers, and cookies alone are not believed.
    address.searchParams.set("_xsrf", page.dataset.xsrf);
    const made = new WebSocket(address);
    let opened = false;
    let exit = null;
    socket = made;
    again.hidden = true;
    state.textContent = "Connecting …";
    made.addEventListener("open", () => {
      opened = true;
      terminal.reset();
      state.textContent = "Connected";
      sendSize();
      terminal.focus();
    });
    made.addEventListener("message", (event) => {
      const told = JSON.parse(event.data);
      if (told.type === "out") terminal.write(bytesOf(atob(told.data)));
      else if (told.type === "exit") exit = told.code;
    });
    made.addEventListener("close", () => {
      if (exit !== null) ended(`The shell has ended (${exit || "0"}).`);
      else if (opened) ended("The connection was lost, and the shell with it.");
      else ended("No shell can be opened: does the session still run, and are you still logged in?");
    });
  }

  terminal.onData((text) => sendBytes(new TextEncoder().encode(text)));
  terminal.onBinary((text) => sendBytes(bytesOf(text)));
  terminal.onResize(sendSize);
  new ResizeObserver(() => fit.fit()).observe(document.getElementById("perijove-terminal"));
  again.addEventListener("click", connect);
  connect();
})();
