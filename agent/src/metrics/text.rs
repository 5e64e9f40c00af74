//! The two forms of metrics in text.
//!
//! Prometheus asks for OpenMetrics, which the library writes. Others read the older form, where a
//! counter's description bears the counter's whole name.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::text::{encode, encode_registry};
use prometheus_client::registry::Registry;

/// The content type of OpenMetrics.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The content type of the older form.
pub const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// In the form of OpenMetrics.
///
/// # Errors
///
/// When a metric cannot be written.
pub fn open_metrics(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(text)
}

/// In the older form.
///
/// # Errors
///
/// When a metric cannot be written.
pub fn classic(registry: &Registry) -> Result<String, fmt::Error> {
    let mut open = String::new();
    encode_registry(&mut open, registry)?;
    let mut text = String::with_capacity(open.len());
    let mut help = None;
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = Some(rest);
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let total = if kind == "counter" { "_total" } else { "" };
            let help = help.take().and_then(|help| help.split_once(' '));
            if let Some((_, help)) = help.filter(|(of, _)| *of == name) {
                writeln!(text, "# HELP {name}{total} {help}")?;
            }
            writeln!(text, "# TYPE {name}{total} {kind}")?;
            continue;
        }
        // It has no units.
        if !line.starts_with("# UNIT ") {
            writeln!(text, "{line}")?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::registry::Unit;

    use super::*;

    #[test]
    fn counters_have_their_whole_name_in_the_older_form() {
        let mut registry = Registry::default();
        registry.register("asked", "How often", Counter::<u64>::default());
        registry.register_with_unit("old", "How old", Unit::Seconds, Gauge::<i64>::default());
        let expected = "# HELP asked_total How often.\n# TYPE asked_total counter\nasked_total 0\n\
            # HELP old_seconds How old.\n# TYPE old_seconds gauge\nold_seconds 0\n";
        assert_eq!(classic(&registry).expect("encodes"), expected);
        let open = open_metrics(&registry).expect("encodes");
        assert!(
            open.contains("# TYPE asked counter\nasked_total 0\n"),
            "{open}"
        );
        assert!(open.ends_with("# EOF\n"), "{open}");
    }
}
