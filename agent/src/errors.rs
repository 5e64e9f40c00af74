//! Errors in words.

use std::error::Error;

/// An error with its sources, outermost first. What is told already is not repeated: many errors
/// print their source themselves.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn sources_are_told_once() {
        let inner = Layer {
            text: "refused",
            source: None,
        };
        let middle = Layer {
            text: "connect",
            source: Some(Box::new(inner)),
        };
        let outer = Layer {
            text: "list: connect",
            source: Some(Box::new(middle)),
        };
        assert_eq!(chain(&outer), "list: connect: refused");
    }
}
