//! Draws progress: a bar on a terminal, a line a stage elsewhere. Always on stderr, so that stdout holds results alone.

use std::{io::IsTerminal as _, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use metier_model::{Progress, Unit};

/// How often a spinner turns.
const SPINNER_TICK: Duration = Duration::from_millis(120);

/// Shows one piece of work at a time; a new stage ends the bar of the one before.
pub struct Bars {
    shown: Option<(String, ProgressBar)>,
    terminal: bool,
}

impl Default for Bars {
    fn default() -> Self {
        Self::new()
    }
}

impl Bars {
    /// Bars when stderr is a terminal, else plain lines.
    pub fn new() -> Self {
        Self { shown: None, terminal: std::io::stderr().is_terminal() }
    }

    /// Shows how far the work is.
    pub fn show(&mut self, progress: Progress<'_>) {
        if self.shown.as_ref().is_none_or(|(stage, _)| stage != progress.stage) {
            self.finish();
            if !self.terminal {
                eprintln!("  {}", progress.stage);
            }
            self.shown = Some((progress.stage.to_owned(), self.bar(&progress)));
        }
        if let Some((_, bar)) = &self.shown {
            match progress.total {
                Some(total) => {
                    bar.set_length(total);
                    bar.set_position(progress.done);
                }
                None => bar.tick(),
            }
        }
    }

    fn bar(&self, progress: &Progress<'_>) -> ProgressBar {
        let target = if self.terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let template = match (progress.total, progress.unit) {
            (None, _) => "  {spinner} {msg} {elapsed}",
            (Some(_), Unit::Bytes) => "  {msg:34} {bar:28} {bytes}/{total_bytes} {eta}",
            (Some(_), Unit::Rows) => "  {msg:34} {bar:28} {pos}/{len} rows {eta}",
            (Some(_), Unit::Steps) => "  {msg:34} {bar:28} {pos}/{len} {eta}",
        };
        let style = ProgressStyle::with_template(template).expect("the templates above are valid");
        let bar = ProgressBar::with_draw_target(progress.total, target).with_style(style);
        bar.set_message(progress.stage.to_owned());
        if progress.total.is_none() && self.terminal {
            bar.enable_steady_tick(SPINNER_TICK);
        }
        bar
    }

    /// Ends what is shown.
    pub fn finish(&mut self) {
        if let Some((_, bar)) = self.shown.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.finish();
    }
}
