// The colours that a person chose, before anything is painted; without a choice, those of the system.
{
  const chosen = localStorage.getItem('facewise.theme');
  if (chosen) document.documentElement.dataset.theme = chosen;
}
