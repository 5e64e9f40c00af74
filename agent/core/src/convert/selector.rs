//! Label selectors.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::Context;
use crate::selector::{Requirement, Selector};

/// What becomes of a requirement that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The selector selects nothing: for peers, which are allowed something.
    SelectsNothing,
    /// It is left out, so that more is selected: for the pods that a policy isolates.
    IsLeftOut,
}

/// A selector; `role` names it in warnings, as in `podSelector of ingress[0].from[1]`.
pub fn selector(
    context: &mut Context,
    selector: &LabelSelector,
    unknown: Unknown,
    role: &str,
) -> Selector {
    let labels = selector.match_labels.iter().flatten();
    let equal = labels.map(|(key, value)| Requirement::In(key.clone(), [value.clone()].into()));
    let mut requirements: Vec<_> = equal.collect();
    for expression in selector.match_expressions.iter().flatten() {
        match requirement(expression) {
            Some(requirement) => requirements.push(requirement),
            None => {
                let consequence = match unknown {
                    Unknown::SelectsNothing => {
                        requirements.push(Requirement::Never);
                        "the selector selects nothing"
                    }
                    Unknown::IsLeftOut => "the expression is left out",
                };
                context.warn(format!(
                    "{role} has a match expression that makes no sense (key {:?}, operator {:?}, \
                     {} values); {consequence}",
                    expression.key,
                    expression.operator,
                    expression.values.as_ref().map_or(0, Vec::len),
                ));
            }
        }
    }
    Selector::new(requirements)
}

fn requirement(expression: &LabelSelectorRequirement) -> Option<Requirement> {
    let key = expression.key.clone();
    let values = expression.values.iter().flatten();
    let some = || Some(values.clone().cloned().collect()).filter(|_| values.clone().count() > 0);
    let none = values.clone().count() == 0;
    match expression.operator.as_str() {
        "In" => Some(Requirement::In(key, some()?)),
        "NotIn" => Some(Requirement::NotIn(key, some()?)),
        "Exists" => none.then_some(Requirement::Exists(key)),
        "DoesNotExist" => none.then_some(Requirement::DoesNotExist(key)),
        _ => None,
    }
}
