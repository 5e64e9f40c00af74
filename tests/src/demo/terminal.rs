//! How the demonstration looks: headings, notes and colours.
//!
//! Colour carries no meaning of its own: what it stresses is also said by a sign or a word. Without a
//! terminal, or with `NO_COLOR` set, there is none.

use std::io::IsTerminal as _;

/// What a piece of text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Ordinary text.
    Plain,
    /// A heading.
    Strong,
    /// Something beside the point.
    Faint,
    /// It passes, it works.
    Good,
    /// It is stopped.
    Stopped,
    /// It is not as it should be.
    Wrong,
}

impl Style {
    /// The parameters of the ANSI sequence.
    fn code(self) -> Option<&'static str> {
        match self {
            Style::Plain => None,
            Style::Strong => Some("1"),
            Style::Faint => Some("2"),
            Style::Good => Some("32"),
            Style::Stopped => Some("31"),
            Style::Wrong => Some("1;30;43"),
        }
    }
}

/// Where the demonstration is shown.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    colours: bool,
}

impl Terminal {
    /// The process's standard output.
    pub fn detect() -> Self {
        let refused = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Terminal {
            colours: std::io::stdout().is_terminal() && !refused("NO_COLOR") && !dumb,
        }
    }

    /// One without colours.
    #[cfg(test)]
    pub fn plain() -> Self {
        Terminal { colours: false }
    }

    /// The text in a style.
    pub fn paint(self, style: Style, text: &str) -> String {
        match style.code() {
            Some(code) if self.colours && !text.is_empty() => {
                format!("\u{1b}[{code}m{text}\u{1b}[0m")
            }
            _ => text.to_owned(),
        }
    }

    /// Begins a part of the story.
    pub fn heading(self, text: &str) {
        println!("\n{}", self.paint(Style::Strong, &format!("━━ {text}")));
    }

    /// Says something within a part.
    pub fn say(self, text: &str) {
        println!("   {text}");
    }

    /// Says something beside the point.
    pub fn note(self, text: &str) {
        println!("   {}", self.paint(Style::Faint, text));
    }

    /// Says how a check went.
    pub fn check(self, passed: bool, text: &str) {
        let (style, sign) = if passed {
            (Style::Good, "✔")
        } else {
            (Style::Wrong, "✘")
        };
        println!("   {} {text}", self.paint(style, sign));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_only_where_they_are_wanted() {
        let coloured = Terminal { colours: true };
        assert_eq!(coloured.paint(Style::Good, "yes"), "\u{1b}[32myes\u{1b}[0m");
        assert_eq!(coloured.paint(Style::Plain, "yes"), "yes");
        assert_eq!(Terminal::plain().paint(Style::Good, "yes"), "yes");
    }
}
