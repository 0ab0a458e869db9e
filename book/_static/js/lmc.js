/* Small repairs of the theme, loaded early on every page. */
(function () {
  "use strict";

  var root = document.currentScript.src.replace(/js\/lmc\.js.*$/, "");

  // With vendored assets, the widget manager's fonts and images come from this site.
  if (document.documentElement.dataset.lmcVendored !== undefined) {
    window.__jupyter_widgets_assets_path__ = root + "vendor/widgets/";
  }

  // The theme's Font Awesome replaces each <i> by an <svg>. The Play widget keeps a hold of its <i>,
  // so the icon has to go inside instead.
  window.FontAwesomeConfig = { autoReplaceSvg: "nest" };

  // Widgets ask for the queue of MathJax 2 when a label holds mathematics. MathJax 3 answers.
  document.addEventListener("DOMContentLoaded", function () {
    var mathjax = window.MathJax;
    if (mathjax && mathjax.startup && !mathjax.Hub) {
      mathjax.Hub = {
        Queue: function (call) {
          mathjax.startup.promise.then(function () {
            return mathjax.typesetPromise([call[2]]);
          });
        },
      };
    }
  });
})();
