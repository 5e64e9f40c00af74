//! Medians over repeated runs. Runs on a shared machine have outliers; means do not forgive them.

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
}
