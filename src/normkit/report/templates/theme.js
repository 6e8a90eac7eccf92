// Before anything is painted: the theme that was chosen last time, and that scripts run at all.
(() => {
  const root = document.documentElement;
  // Without it neither the charts' program nor the downloads can be unpacked.
  if ("DecompressionStream" in window) root.classList.add("scripted");
  try {
    const kept = localStorage.getItem("normkit-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch {
    // No storage, as in a private window: the system's theme it is.
  }
})();
