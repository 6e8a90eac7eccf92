"use strict";
// The wall of cards and the claim that is open: what the address names, what is searched for.
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const wall = document.getElementById("wall");
  const cards = all(".card");
  if (!root.classList.contains("scripted") || !cards.length) return;

  // ---- the claim that is open ---------------------------------------------------------------

  const claims = new Map(all("article.whole").map((article) => [article.id, article]));
  const titled = document.title;
  // Where the browser can, its own search finds what is closed, and opens it.
  const closed = "onbeforematch" in document.body ? "until-found" : "";
  const close = (article) => article.setAttribute("hidden", closed);
  const open = (article) => article.removeAttribute("hidden");
  claims.forEach(close);
  let reading = null;

  function named() {
    let id = location.hash.slice(1);
    try {
      id = decodeURIComponent(id);
    } catch {
      // Not of our making; nothing has such a name.
    }
    return id ? document.getElementById(id) ?? claims.get(id.toUpperCase()) ?? null : null;
  }

  // The address decides, so links into the page, back and forward need nothing more.
  function follow() {
    const place = named();
    const claim = place?.closest("article.whole") ?? null;
    const before = reading;
    reading = claim;
    claims.forEach((article) => (article === claim ? open(article) : close(article)));
    wall.hidden = Boolean(claim);
    if (claim) root.dataset.reading = claim.id;
    else delete root.dataset.reading;
    document.title = claim ? `${claim.querySelector("h2").textContent.trim()} · normkit` : titled;
    if (claim) {
      for (let it = place.parentElement; it !== claim.parentElement && it; it = it.parentElement)
        if (it.tagName === "DETAILS") it.open = true;
      if (place === claim) window.scrollTo({ top: 0, behavior: "instant" });
      else place.scrollIntoView({ behavior: "instant" });
      claim.focus({ preventScroll: true });
    } else if (before && (!place || place.id === "claims")) {
      // Back to the card that was open.
      const card = cards.find((each) => each.dataset.claim === before.id);
      if (card.hidden) return document.getElementById("claims").scrollIntoView({ behavior: "instant" });
      card.scrollIntoView({ behavior: "instant", block: "center" });
      card.querySelector("a").focus({ preventScroll: true });
    } else if (place) {
      place.scrollIntoView({ behavior: "instant" });
      place.focus({ preventScroll: true });
    }
  }
  window.addEventListener("hashchange", follow);
  claims.forEach((article, id) => article.addEventListener("beforematch", () => {
    if (reading !== article && named()?.closest("article.whole") !== article) location.hash = id;
  }));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && reading && !event.defaultPrevented) location.hash = "claims";
  });
  if (named()) follow();

  // ---- search and filters -------------------------------------------------------------------

  const buttons = all("[data-filter]");
  const search = document.getElementById("search");
  const chosen = { topic: "", verdict: "" };
  // As one types it: 1e-10 or 10^-10 for a power, no signs of other kinds.
  const plain = (text) => text.normalize("NFKC").toLowerCase().replace(/\u2212/g, "-").replace(/\^/g, "")
    .replace(/’/g, "'").replace(/\b1e(?=-?\d)/g, "10");
  // C1 is not C10.
  const has = (text, word) => /^c\d+$/.test(word) ? text.split(/\W+/).includes(word) : text.includes(word);
  const texts = new Map(cards.map((card) => {
    const article = claims.get(card.dataset.claim);
    const words = [card, ...all("header, .sentence, .comparisons, .said, .beside, .differs, .sources, .scale", article)];
    return [card, plain(words.map((part) => part.textContent).join(" "))];
  }));

  function sift() {
    const words = plain(search.value).split(/\s+/).filter(Boolean);
    cards.forEach((card) => {
      const fits = Object.entries(chosen).every(([name, value]) => !value || card.dataset[name] === value);
      card.hidden = !fits || !words.every((word) => has(texts.get(card), word));
    });
    const count = cards.filter((card) => !card.hidden).length;
    document.getElementById("matches").textContent =
      `${count === cards.length ? "" : `${count} of `}${cards.length} claim${cards.length === 1 ? "" : "s"}`;
    document.getElementById("nothing").hidden = count > 0;
    buttons.forEach((button) =>
      button.setAttribute("aria-pressed", String(chosen[button.dataset.filter] === button.dataset.value)));
  }
  buttons.forEach((button) => button.addEventListener("click", () => {
    chosen[button.dataset.filter] = button.dataset.value;
    sift();
  }));
  search.addEventListener("input", sift);
  document.querySelector('[data-act="all"]').addEventListener("click", () => {
    Object.assign(chosen, { topic: "", verdict: "" });
    search.value = "";
    sift();
    search.focus();
  });
  sift();
})();
