// the filter of the page of messages: shows those that have all the words, and opens their groups
(() => {
  const box = document.getElementById("filter-of-messages"),
    said = document.getElementById("messages-found");
  const items = [...document.querySelectorAll("li.message")],
    groups = [...document.querySelectorAll("details.messages")];
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/[^\p{L}\p{N}_]+/u).filter(Boolean);
    let found = 0;
    for (const item of items) {
      const text = item.textContent.toLowerCase();
      item.hidden = !words.every(word => text.includes(word));
      found += !item.hidden;
    }
    for (const group of groups) group.open = words.length > 0 && !!group.querySelector("li.message:not([hidden])");
    said.textContent = words.length ? `${found} of ${items.length}` : "";
  });
})();
