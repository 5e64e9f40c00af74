//! Medians over repeated runs, and percentiles of what happens often. Runs on a shared machine have
//! outliers; means do not forgive them.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Repeated measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The middle measurement, or the mean of the two middle ones.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Summary {
    /// Summarises measurements; `None` without any. Values that are no numbers do not count.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        values.sort_by(f64::total_cmp);
        let (&least, &most) = (values.first()?, values.last()?);
        let half = values.len() / 2;
        let upper = values.get(half)?;
        let median = if values.len() % 2 == 1 {
            *upper
        } else {
            (values.get(half - 1)? + upper) / 2.0
        };
        Some(Self {
            median,
            least,
            most,
        })
    }

    /// Summarises the ratios of two series measured in alternation. The pairs of one round share the
    /// machine's mood, so their ratios are steadier than the ratio of two medians.
    pub fn of_ratios(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        Self::of(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs))
    }
}

/// What something took, each time, in order.
#[derive(Clone, Debug, Serialize)]
pub struct Times {
    what: String,
    count: usize,
    /// So long, or shorter, in half of all cases.
    #[serde(serialize_with = "milliseconds")]
    pub p50: Duration,
    /// In 99 of a hundred.
    #[serde(serialize_with = "milliseconds")]
    pub p99: Duration,
    /// Always.
    #[serde(serialize_with = "milliseconds")]
    pub most: Duration,
}

impl Times {
    /// Of at least one time.
    pub fn of(what: impl Into<String>, mut times: Vec<Duration>) -> Self {
        times.sort();
        Times {
            what: what.into(),
            count: times.len(),
            p50: percentile(&times, 50),
            p99: percentile(&times, 99),
            most: percentile(&times, 100),
        }
    }

    /// A line for each, under a heading, in milliseconds.
    pub fn write_table(times: &[Self], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:36} {:>6} {:>9} {:>9} {:>9}",
            "milliseconds", "count", "p50", "p99", "most"
        )?;
        for Self {
            what,
            count,
            p50,
            p99,
            most,
        } in times
        {
            let [p50, p99, most] = [p50, p99, most].map(|time| time.as_secs_f64() * 1000.0);
            writeln!(f, "{what:36} {count:>6} {p50:>9.1} {p99:>9.1} {most:>9.1}")?;
        }
        Ok(())
    }
}

/// The smallest value that so many in a hundred do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

/// A duration as a number of milliseconds.
pub fn milliseconds<S: serde::Serializer>(
    time: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_ignores_outliers() {
        let odd = Summary::of([3.0, 1000.0, 1.0]).unwrap();
        assert_eq!(
            odd,
            Summary {
                median: 3.0,
                least: 1.0,
                most: 1000.0
            }
        );
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
        assert_eq!(Summary::of([7.0]).unwrap().median, 7.0);
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn what_is_no_number_does_not_count() {
        assert_eq!(
            Summary::of([f64::NAN, 2.0, f64::INFINITY]).unwrap().median,
            2.0
        );
        assert_eq!(Summary::of([f64::NAN]), None);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        // The machine was ten times slower in the second round, for both.
        let ratios = Summary::of_ratios(&[100.0, 10.0, 120.0], &[50.0, 5.0, 50.0]).unwrap();
        assert_eq!(
            ratios,
            Summary {
                median: 2.0,
                least: 2.0,
                most: 2.4
            }
        );
        // A round that measured nothing has no ratio.
        assert_eq!(
            Summary::of_ratios(&[1.0, 4.0], &[0.0, 2.0]).unwrap().median,
            2.0
        );
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        let at = |percent| percentile(&times, percent).as_millis();
        assert_eq!([at(50), at(99), at(100)], [100, 198, 200]);
        assert_eq!(percentile(&times[..1], 50), times[0]);
    }
}
