//! When it happened what a slice tells: the earliest of the changes since the slices were last written.
//! A change is that a Service was created, or that a pod became ready or unready.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api::object::{self, items, text};
use crate::api::{Key, Object};

/// What was told before, by Service.
#[derive(Default)]
pub struct Triggers(BTreeMap<Key, Told>);

#[derive(Default)]
struct Told {
    /// When the Service was created.
    service: String,
    /// Each pod's last change, by uid.
    pods: BTreeMap<String, String>,
}

impl Triggers {
    /// Takes note of a Service and its pods; the time of the earliest change since the last note,
    /// RFC 3339. `None` when no change has a time, such as when a pod is gone.
    pub fn note(&mut self, key: &Key, service: &Value, pods: &[Object]) -> Option<String> {
        let told = self.0.entry(key.clone()).or_default();
        let mut news = Vec::new();
        let created = text(service, "/metadata/creationTimestamp").to_owned();
        if told.service != created {
            news.push(created.clone());
            told.service = created;
        }
        let mut now = BTreeMap::new();
        for pod in pods {
            let mut conditions = items(pod, "/status/conditions").iter();
            let ready = conditions.find(|condition| condition["type"] == "Ready");
            let changed = ready.map_or("", |condition| text(condition, "/lastTransitionTime"));
            if changed.is_empty() {
                continue;
            }
            let uid = object::uid(pod).to_owned();
            if told.pods.get(&uid).map(String::as_str) != Some(changed) {
                news.push(changed.to_owned());
            }
            now.insert(uid, changed.to_owned());
        }
        told.pods = now;
        // Times of the same form have the order of their texts.
        news.into_iter().min()
    }

    /// Forgets a Service that is gone.
    pub fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::resources::SERVICES;

    #[test]
    fn the_earliest_news_is_told_once() {
        let key = Key::new(&SERVICES, "a", "s");
        let service = json!({ "metadata": { "creationTimestamp": "2026-01-01T00:00:05Z" } });
        let pod = |uid: &str, time: &str| -> Object {
            let ready = json!([{ "type": "Ready", "lastTransitionTime": time }]);
            json!({ "metadata": { "uid": uid }, "status": { "conditions": ready } }).into()
        };
        let (old, new) = (
            pod("1", "2026-01-01T00:00:03Z"),
            pod("2", "2026-01-01T00:00:09Z"),
        );
        let mut triggers = Triggers::default();
        let mut note = |pods: &[Object]| triggers.note(&key, &service, pods);
        assert_eq!(
            note(std::slice::from_ref(&old)).as_deref(),
            Some("2026-01-01T00:00:03Z")
        );
        assert_eq!(note(std::slice::from_ref(&old)), None);
        assert_eq!(
            note(&[old, new.clone()]).as_deref(),
            Some("2026-01-01T00:00:09Z")
        );
        assert_eq!(note(&[new]), None, "that one is gone has no time");
    }
}
