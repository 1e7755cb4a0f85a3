// The spawn form: sliders follow numbers, presets fill both, and the cluster is asked what it would say.
"use strict";
(() => {
  const form = document.getElementById("spawn_form");
  const content = document.getElementById("perijove-form");
  const line = document.getElementById("perijove-verdict");
  const start = document.getElementById("perijove-start");
  if (!form || !content) return; // another form than ours

  const numberOf = (range) => document.getElementById(range.dataset.for);
  const ranges = [...form.querySelectorAll(".perijove-range")];
  const radios = [...form.querySelectorAll("input[name=preset]")];
  const custom = radios[radios.length - 1];

  function show(input, text) {
    input.value = text;
    ranges.filter((range) => numberOf(range) === input).forEach((range) => { range.value = text; });
  }

  function fillFrom(radio) {
    if (radio === custom) return;
    show(form.elements.cpu, radio.dataset.cpu);
    show(form.elements.mem_gib, radio.dataset.mem);
    const accelerators = JSON.parse(radio.dataset.accelerators);
    for (const range of ranges) {
      const input = numberOf(range);
      if (input.name.startsWith("slot.")) show(input, accelerators[input.name] || "0");
    }
  }

  function becomesCustom(input) {
    if (custom) custom.checked = true;
    input.classList.remove("is-invalid");
  }

  for (const range of ranges) {
    const input = numberOf(range);
    range.hidden = false;
    range.value = input.value;
    range.addEventListener("input", () => { input.value = range.value; becomesCustom(input); ask(); });
    input.addEventListener("input", () => { range.value = input.value; becomesCustom(input); ask(); });
  }
  for (const radio of radios) {
    radio.addEventListener("change", () => { fillFrom(radio); ask(); });
    if (radio.checked && !form.querySelector(".is-invalid")) fillFrom(radio);
  }

  const groupField = form.elements.resource_group;
  const frees = [...form.querySelectorAll(".perijove-free")];
  function showFree() {
    if (groupField) frees.forEach((free) => { free.hidden = free.dataset.group !== groupField.value; });
  }
  for (const select of form.querySelectorAll("select")) {
    select.addEventListener("change", () => { showFree(); ask(); });
  }
  showFree();

  // Field errors that the cluster found, shown where they belong.
  function mark(errors) {
    for (const old of form.querySelectorAll(".invalid-feedback")) old.remove();
    for (const input of form.querySelectorAll(".is-invalid")) {
      input.classList.remove("is-invalid");
      input.removeAttribute("aria-invalid");
      input.removeAttribute("aria-describedby");
    }
    for (const [name, why] of Object.entries(errors)) {
      const input = form.elements[name];
      if (!(input instanceof HTMLElement)) continue;
      input.classList.add("is-invalid");
      const note = document.createElement("div");
      note.className = "invalid-feedback d-block";
      note.id = `error-${name}`;
      input.setAttribute("aria-invalid", "true");
      input.setAttribute("aria-describedby", note.id);
      note.textContent = why;
      (input.closest(".perijove-amount") || input.parentElement).append(note);
    }
  }

  const sentences = {
    now: "This fits now.",
    wait: "This would have to wait.",
    never: "This can never run here.",
    unknown: "",
  };
  let timer = 0;
  let asked = 0;
  let last = null;

  function ask(delay = 250) {
    if (!content.dataset.checkUrl) return;
    last = null;
    line.dataset.asking = "";
    clearTimeout(timer);
    timer = setTimeout(askNow, delay);
  }

  async function askNow() {
    const turn = ++asked;
    const fields = {};
    for (const [name, value] of new FormData(form)) if (typeof value === "string") fields[name] = value;
    let answer = { verdict: "unknown", message: "", errors: {} };
    try {
      const response = await fetch(content.dataset.checkUrl, {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-XSRFToken": form.dataset.xsrf },
        body: JSON.stringify(fields),
        credentials: "same-origin",
      });
      if (response.ok) answer = await response.json();
    } catch {
      // Without an answer the form still works: the server checks it.
    }
    if (turn !== asked) return answer;
    last = answer;
    delete line.dataset.asking;
    line.dataset.verdict = answer.verdict;
    line.textContent = answer.message || sentences[answer.verdict] || "";
    mark(answer.errors || {});
    return answer;
  }

  setInterval(() => { if (!document.hidden && last) askNow(); }, 15000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(0); });
  ask(0);

  // What can never run is refused here; everything else is the server's to decide.
  let sure = false;
  form.addEventListener("submit", async (event) => {
    if (sure || !content.dataset.checkUrl) return;
    event.preventDefault();
    clearTimeout(timer);
    start.disabled = true;
    const answer = last || (await askNow());
    if (answer.verdict === "never") {
      start.disabled = false;
      const wrong = form.querySelector(".is-invalid");
      (wrong || line).scrollIntoView({ block: "center" });
      if (wrong) wrong.focus();
      return;
    }
    sure = true;
    start.textContent = "Starting …";
    form.submit();
  });
  window.addEventListener("pageshow", () => {
    sure = false;
    start.disabled = false;
    start.textContent = "Start";
  });
})();
