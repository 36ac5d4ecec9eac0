// Draws the figures of the comparison page in the colours of the reader's theme.

const dark = matchMedia('(prefers-color-scheme: dark)');
function layout(figure) {
  const ink = dark.matches ? '#e8ebef' : '#1f2733', grid = dark.matches ? '#333c48' : '#e6eaef';
  const out = structuredClone(figure.layout);
  Object.assign(out, {paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)'});
  out.font = Object.assign({}, out.font, {color: ink});
  for (const key of Object.keys(out)) if (/^[xy]axis/.test(key))
    Object.assign(out[key], {gridcolor: grid, linecolor: grid, zerolinecolor: grid});
  out.hoverlabel = {bgcolor: dark.matches ? '#23282f' : '#fff', font: {color: ink}};
  const quiet = {bgcolor: 'rgba(0,0,0,0)', color: dark.matches ? '#7b8695' : '#7b8593'};
  out.modebar = Object.assign({activecolor: ink}, quiet, out.modebar);
  return out;
}
const figures = [...document.querySelectorAll('script.figure-data')].map(
  node => [node.previousElementSibling, JSON.parse(node.textContent)]);
const config = {responsive: true, displaylogo: false, plotlyServerURL: ''};
const draw = () => figures.forEach(([at, f]) => Plotly.react(at, f.data, layout(f), config));
draw();
dark.addEventListener('change', draw);
