// The pictures of heads: where was clicked, as a share of width and height; and which heads are blurred
element.addEventListener('click', (event) => {
  const picture = event.target.closest('.over');
  if (!picture) return;
  const box = picture.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  const heads = element.querySelector('.pc-heads');
  heads.style.setProperty('--x', `${100 * x}%`);
  heads.style.setProperty('--y', `${100 * y}%`);
  trigger('place', {x, y});
});
// Clicks in quick succession are one event: requests that are sent at once may arrive in another order
let waiting;
element.addEventListener('change', () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const boxes = [...element.querySelectorAll('input:checked')];
    trigger('blurring', {heads: boxes.map((box) => Number(box.closest('figure').dataset.head))});
  }, 20);
});
