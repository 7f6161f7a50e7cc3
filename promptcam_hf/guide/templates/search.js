// Shows the species whose name contains what is typed, whatever the case and the accents.
"use strict";
const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
const search = document.getElementById("search");
const cards = [...document.querySelectorAll("#species > li")];
search.addEventListener("input", () => {
  const wanted = plain(search.value.trim());
  for (const card of cards) card.hidden = !plain(card.dataset.name).includes(wanted);
  const count = cards.filter((card) => !card.hidden).length;
  document.getElementById("count").textContent = wanted ? `${count} of ${cards.length}` : "";
});
