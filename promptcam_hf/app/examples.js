// The small photographs to choose from
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-example]');
  if (button) trigger('choose', {number: Number(button.dataset.example)});
});
