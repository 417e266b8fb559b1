// Fill the page. The other scripts come before this one, in one function, so that they share its scope.
showSummary();
showScores();
showDifferences();
showCurves();
showSettings();
buildControls();
showHistograms();
refresh(0);
