// The page of sessions: a table that follows the manager's events. Text only ever enters as text nodes.
"use strict";

(() => {
  const page = document.getElementById("perijove-sessions");
  const prefix = page.dataset.prefix;
  const isAdmin = page.dataset.admin === "yes";
  const rows = document.getElementById("perijove-rows");
  const live = document.getElementById("perijove-live");
  const news = document.getElementById("perijove-news");
  const SLOW_TICK = 10000;
  const DEBOUNCE = 300;

  document.documentElement.dataset.bsTheme =
    localStorage.getItem("jupyterhub-bs-theme") ||
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function say(text, kind) {
    news.className = `alert alert-${kind}`;
    news.textContent = text;
    news.hidden = false;
  }

  async function ask(path, options = {}) {
    const response = await fetch(prefix + path, {
      headers: { "X-XSRFToken": page.dataset.xsrf, Accept: "application/json" },
      credentials: "same-origin",
      ...options,
    });
    const body = await response.json();
    if (!response.ok) throw new Error(body.msg || body.title || response.statusText);
    return body;
  }

  function age(seconds) {
    const minutes = Math.floor(seconds / 60);
    if (minutes < 1) return `${Math.floor(seconds)} s`;
    if (minutes < 60) return `${minutes} min`;
    const hours = Math.floor(minutes / 60);
    return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
  }

  function badge(status) {
    const kind = status.startsWith("RUNNING") ? "now" : status === "ERROR" ? "never" : "wait";
    return element("span", `perijove-badge perijove-badge-${kind}`, status.toLowerCase());
  }

  function stopButton(session) {
    const button = element("button", "btn btn-sm btn-outline-danger", "Stop");
    button.type = "button";
    button.setAttribute("aria-label", `Stop ${session.name}`);
    button.disabled = session.target === "TERMINATED";
    button.addEventListener("click", async () => {
      if (!confirm(`Stop ${session.name}? Unsaved work in it is lost.`)) return;
      button.disabled = true;
      try {
        await ask(`session/${session.id}`, { method: "DELETE" });
      } catch (error) {
        live.textContent = error.message;
      }
      refresh();
    });
    return button;
  }

  function extendButton(session) {
    const button = element("button", "btn btn-sm btn-outline-secondary me-2", "Extend");
    button.type = "button";
    button.title = "Keep it from ending, as far as the owner's policy allows";
    button.setAttribute("aria-label", `Extend ${session.name}`);
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        const told = await ask(`session/${session.id}/extend`, { method: "POST" });
        const left = told.ends_in === null ? "" : ` for at least ${age(told.ends_in)}`;
        say(`${session.name} was extended and goes on${left}.`, "success");
      } catch (error) {
        say(`${session.name} was not extended: ${error.message}.`, "warning");
      }
      refresh();
    });
    return button;
  }

  const TITLES = { jupyterlab: "JupyterLab", tensorboard: "TensorBoard", vscode: "VS Code" };

  function appLink(session, app) {
    const link = element("a", "", TITLES[app.name] || app.name);
    link.href = app.url;
    link.target = "_blank";
    link.rel = "noopener";
    link.setAttribute("aria-label", `${link.textContent} of ${session.name}`);
    return link;
  }

  function terminalLink(session) {
    const link = element("a", "btn btn-sm btn-outline-secondary me-2", "Terminal");
    link.href = `${prefix}session/${session.id}/terminal`;
    link.target = "_blank";
    link.rel = "noopener";
    link.setAttribute("aria-label", `Terminal of ${session.name}`);
    return link;
  }

  function sessionRow(session) {
    const row = element("tr");
    const cells = [];
    const name = element("td");
    name.append(element("div", "fw-semibold", session.name));
    name.append(element("div", "small text-body-secondary", session.image));
    if (session.status.startsWith("RUNNING") && session.owner === page.dataset.user) {
      const apps = element("div", "perijove-apps small");
      apps.append(...session.web_apps.map((app) => appLink(session, app)));
      name.append(apps);
    }
    cells.push(name);
    if (isAdmin) cells.push(element("td", "", session.owner));
    const state = element("td");
    state.append(badge(session.status));
    if (session.message.toLowerCase() !== session.status.toLowerCase()) {
      state.append(element("div", "small text-body-secondary", session.message));
    }
    cells.push(state, element("td", "", session.resources));
    if (isAdmin) cells.push(element("td", "", session.agent || "–"));
    const time = element("td", "text-nowrap", age(session.age));
    if (session.ends_in !== null) {
      const told = session.warning ? "perijove-ending" : "text-body-secondary";
      const left = element("div", `small ${told}`);
      left.dataset.endsAt = String(performance.now() / 1000 + session.ends_in);
      time.append(left);
    }
    if (session.warning) {
      time.append(element("div", "small text-body-secondary text-wrap", session.warning.message));
    }
    cells.push(time);
    const actions = element("td", "text-end text-nowrap");
    if (session.status.startsWith("RUNNING")) {
      if (session.ends_in !== null) actions.append(extendButton(session));
      actions.append(terminalLink(session));
    }
    actions.append(stopButton(session));
    cells.push(actions);
    row.append(...cells);
    return row;
  }

  function cordonButton(agent) {
    const button = element(
      "button",
      "btn btn-sm btn-outline-secondary",
      agent.schedulable ? "Cordon" : "Uncordon",
    );
    button.type = "button";
    button.title = agent.schedulable
      ? "Schedule no further session here"
      : "Schedule sessions here again";
    button.addEventListener("click", async () => {
      const action = agent.schedulable ? "cordon" : "uncordon";
      button.disabled = true;
      try {
        await ask(`agents/${encodeURIComponent(agent.id)}/${action}`, { method: "POST" });
      } catch (error) {
        say(`The scheduling of ${agent.id} was not changed: ${error.message}.`, "warning");
      }
      refresh();
    });
    return button;
  }

  function nodeCard(agent) {
    const card = element("section", "perijove-node");
    const head = element("div", "d-flex justify-content-between align-items-center mb-2");
    const state = !agent.connected ? "not connected" : agent.schedulable ? "ready" : "cordoned";
    const title = element("div");
    title.append(element("strong", "", agent.id), element("span", "text-body-secondary small ms-2", `${state} · ${agent.engine}`));
    head.append(title, cordonButton(agent));
    card.append(head);
    for (const [slot, use] of Object.entries(agent.resources)) {
      const line = element("div", "small", `${use.capacity}, ${Math.round(use.ratio * 100)} % in use`);
      line.title = use.used;
      const meter = element("meter", "perijove-meter");
      meter.max = 1;
      meter.value = use.ratio;
      meter.setAttribute("aria-label", `${slot} in use on ${agent.id}`);
      card.append(line, meter);
    }
    return card;
  }

  function countDown() {
    for (const each of rows.querySelectorAll("[data-ends-at]")) {
      const left = Math.max(Number(each.dataset.endsAt) - performance.now() / 1000, 0);
      each.textContent = `${left < 120 ? `${Math.floor(left)} s` : age(left)} left`;
    }
  }

  async function refresh() {
    try {
      const [listing, nodes] = await Promise.all([
        ask(`sessions?limit=500&status=PENDING,SCHEDULED,PREPARING,CREATING,RUNNING,RUNNING_DEGRADED,RESTARTING,TERMINATING,PREEMPTED${isAdmin ? "&all=1" : ""}`),
        isAdmin ? ask("agents") : Promise.resolve({ agents: [] }),
      ]);
      rows.replaceChildren(...listing.sessions.map(sessionRow));
      countDown();
      document.getElementById("perijove-none").hidden = listing.sessions.length > 0;
      live.textContent = `${listing.total} session${listing.total === 1 ? "" : "s"}`;
      if (isAdmin) {
        document.getElementById("perijove-nodes").replaceChildren(...nodes.agents.map(nodeCard));
      }
    } catch (error) {
      live.textContent = `Not up to date: ${error.message}`;
    }
  }

  let due = 0;
  function soon() {
    clearTimeout(due);
    due = setTimeout(refresh, DEBOUNCE);
  }

  // An EventSource sends no headers, and cookies alone are not believed.
  const events = new EventSource(`${prefix}events/session?_xsrf=${encodeURIComponent(page.dataset.xsrf)}`);
  for (const name of ["enqueued", "scheduled", "started", "terminating", "terminated", "cancelled", "idle_warning"]) {
    events.addEventListener(`session_${name}`, soon);
  }
  for (const name of ["preparing", "creating", "started", "terminated"]) {
    events.addEventListener(`kernel_${name}`, soon);
  }
  setInterval(() => { if (!document.hidden) refresh(); }, SLOW_TICK);
  setInterval(countDown, 1000);
  refresh();
})();
