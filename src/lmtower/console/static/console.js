// Live parts, confirmation, copying, the try-it box, log tails. No library, nothing from elsewhere.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// -- theme

$$("[data-theme-switch]").forEach((button) =>
  button.addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
    const next = now === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem("theme", next);
  }),
);

// -- live parts: fetched while the page is seen, put in when they differ, never under the keyboard's focus

function live(part) {
  const every = Number(part.dataset.every) * 1000;
  let last = null;
  async function look() {
    if (!document.hidden && !part.contains(document.activeElement)) {
      try {
        const answer = await fetch(part.dataset.live, { headers: { accept: "text/html" } });
        if (answer.status === 401) return location.reload();
        const text = await answer.text();
        if (answer.ok && text !== last) {
          const scrolled = $$(".scroll", part).map((box) => box.scrollLeft);
          part.innerHTML = last = text;
          $$(".scroll", part).forEach((box, i) => (box.scrollLeft = scrolled[i] || 0));
        }
        part.classList.toggle("stale", !answer.ok);
      } catch {
        part.classList.add("stale");
      }
    }
    setTimeout(look, every);
  }
  setTimeout(look, every);
}
$$("[data-live]").forEach(live);

// -- confirmation

const dialog = $("#confirm");
$$("form[data-confirm]").forEach((form) =>
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    $("#confirm-text").textContent = form.dataset.confirm;
    $("[data-yes]", dialog).textContent = $("button", form).textContent;
    $("[data-yes]", dialog).onclick = () => {
      dialog.close();
      form.submit();
    };
    dialog.showModal();
    $("[data-no]", dialog).focus();
  }),
);
if (dialog) $("[data-no]", dialog).addEventListener("click", () => dialog.close());

// -- small ones

$$("[data-copy]").forEach((button) =>
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source); // no clipboard without HTTPS: select it instead
      button.textContent = "Selected";
    }
  }),
);
$$("form[data-auto] select").forEach((select) => select.addEventListener("change", () => select.form.submit()));

$$("details[data-log]").forEach((details) => {
  const pre = $("pre", details);
  async function tail() {
    if (!details.open) return;
    if (!document.hidden) {
      const answer = await fetch(details.dataset.log).catch(() => null);
      const text = answer ? await answer.text() : "The console does not answer.";
      const end = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 8;
      if (text !== pre.textContent) pre.textContent = text;
      if (end) pre.scrollTop = pre.scrollHeight;
    }
    setTimeout(tail, 3000);
  }
  details.addEventListener("toggle", tail);
});

// -- try it

const seconds = (value) =>
  value === null || value === undefined ? "–" : value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(1)} s`;
const tokens = (value) => `${value} ${value === 1 ? "token" : "tokens"}`;

function tryIt(box) {
  const form = $("form", box);
  if (!form) return;
  const part = (name) => $(`[data-${name}]`, box);
  const explained = $("[data-explained]");
  let stopper = null;

  const asked = () => ({
    prompt: form.prompt.value,
    suffix: form.suffix ? form.suffix.value : "",
    max_tokens: form.max_tokens ? Number(form.max_tokens.value) : 0,
  });
  const post = (path, body, signal) =>
    fetch(box.dataset.try + path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
  const fail = (text) => {
    part("error").textContent = text;
    part("error").hidden = false;
  };

  function show(line) {
    if (line.ttft !== undefined) part("ttft").textContent = seconds(line.ttft);
    if (line.thinking) {
      part("thinking").hidden = false;
      $("pre", part("thinking")).append(line.thinking);
    }
    if (line.text) part("answer").append(line.text);
    if (line.error) fail(line.error);
    if (line.done) {
      const done = line.done;
      const share = done.input_tokens ? Math.round((100 * done.cached_tokens) / done.input_tokens) : 0;
      part("input").textContent = tokens(done.input_tokens);
      part("cached").textContent = `${tokens(done.cached_tokens)} (${share} %)`;
      part("output").textContent = tokens(done.output_tokens);
      part("speed").textContent = done.tokens_per_second ? `${done.tokens_per_second.toFixed(1)} tokens/s` : "–";
      part("seconds").textContent = seconds(done.seconds);
    }
  }

  async function send() {
    stopper = new AbortController();
    ["ttft", "input", "cached", "output", "speed", "seconds"].forEach((name) => (part(name).textContent = "–"));
    part("answer").textContent = "";
    $("pre", part("thinking")).textContent = "";
    part("thinking").hidden = part("error").hidden = true;
    part("figures").hidden = part("answer").hidden = part("stop").hidden = false;
    part("send").disabled = true;
    box.dataset.state = "busy";
    try {
      const answer = await post("/try", asked(), stopper.signal);
      if (!answer.ok) throw new Error(await answer.text());
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        lines.forEach((line) => show(JSON.parse(line)));
      }
    } catch (error) {
      if (error.name !== "AbortError") fail(error.message);
    }
    part("send").disabled = false;
    part("stop").hidden = true;
    box.dataset.state = "done";
  }

  async function explain() {
    const answer = await post("/explain", { ...asked(), reveal: $("[data-reveal]", explained).checked });
    const found = await answer.json().catch(() => ({ error: "The console does not answer." }));
    explained.hidden = false;
    $("[data-body]", explained).textContent = found.error || found.body;
    $("[data-rules]", explained).replaceChildren(
      ...(found.rules || []).map((rule) => Object.assign(document.createElement("li"), { textContent: rule })),
    );
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  form.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  part("stop").addEventListener("click", () => stopper && stopper.abort());
  part("explain").addEventListener("click", explain);
  $("[data-reveal]", explained).addEventListener("change", explain);
}
$$("[data-try]").forEach(tryIt);
