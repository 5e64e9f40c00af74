//! Through the real `kubectl`, without extra flags.

use std::io::Write as _;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::Cluster;

const APPLICATION: &str = r#"
apiVersion: v1
kind: Namespace
metadata:
  name: shop
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
        - name: web
          image: registry.example/web:1
          ports:
            - {name: http, containerPort: 8080}
          resources:
            limits: {cpu: 1, memory: 64Mi}
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
spec:
  selector: {app: web}
  ports:
    - {port: 80, targetPort: http}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web
  namespace: shop
spec:
  podSelector: {}
  ingress:
    - from:
        - podSelector: {matchLabels: {app: front}}
      ports:
        - {protocol: TCP, port: 8080}
"#;

struct Kubectl {
    home: TempDir,
    _cluster: Cluster,
}

impl Kubectl {
    /// `None`, said aloud, when there is no `kubectl`.
    fn find() -> Option<Self> {
        let there = Command::new("kubectl")
            .args(["version", "--client"])
            .output();
        if !there.is_ok_and(|output| output.status.success()) {
            println!("skipped: there is no kubectl on PATH");
            return None;
        }
        let cluster = Cluster::with_controllers();
        let home = TempDir::new().unwrap();
        let config = weft_tests::api::kubeconfig(&cluster.url);
        std::fs::write(home.path().join("config"), config).unwrap();
        Some(Kubectl {
            home,
            _cluster: cluster,
        })
    }

    /// Success, and everything it said.
    fn try_run(&self, line: &str, input: &str) -> (bool, String) {
        let mut child = Command::new("kubectl")
            .args(line.split_whitespace())
            .env("KUBECONFIG", self.home.path().join("config"))
            // The cache of discovery.
            .env("HOME", self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end without reading.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    #[track_caller]
    fn run(&self, line: &str, input: &str) -> String {
        let (success, text) = self.try_run(line, input);
        assert!(success, "kubectl {line}: {text}");
        text
    }

    #[track_caller]
    fn says(&self, line: &str, expected: &str) {
        let text = self.run(line, "");
        assert!(text.contains(expected), "kubectl {line}: {text}");
    }
}

#[test]
fn a_day_with_kubectl() {
    let Some(kubectl) = Kubectl::find() else {
        return;
    };
    let made = kubectl.run("apply -f -", APPLICATION);
    assert_eq!(
        made.lines()
            .filter(|line| line.ends_with(" created"))
            .count(),
        4,
        "{made}"
    );
    let again = kubectl.run("apply -f -", APPLICATION);
    assert!(again.contains("service/web unchanged"), "{again}");
    let changed = APPLICATION.replace("port: 80,", "port: 81,");
    let more = kubectl.run("apply -f -", &changed);
    assert!(more.contains("service/web configured"), "{more}");
    kubectl.says("get svc -n shop", "81/TCP");
    kubectl.says(
        "get deploy,svc,netpol -n shop -o wide",
        "networkpolicy.networking.k8s.io/web",
    );
    kubectl.says("get all -A", "deployment.apps/web");
    kubectl.says(
        "describe svc web -n shop",
        "Selector:                 app=web",
    );
    kubectl.says("describe deployment web -n shop", "2 desired");
    kubectl.says("label svc web -n shop tier=front", "labeled");
    kubectl.says("get svc -A -l tier=front -o name", "service/web");
    kubectl.says("annotate svc web -n shop a=b", "annotated");
    kubectl.says("scale deploy web -n shop --replicas=3", "scaled");
    kubectl.says("get deploy web -n shop -o jsonpath={.spec.replicas}", "3");
    kubectl.says("run solo -n shop --image=x:1", "pod/solo created");
    kubectl.says(
        "get pods -n shop --field-selector=metadata.name=solo",
        "Pending",
    );
    kubectl.says("describe pod solo -n shop", "Status:           Pending");
    kubectl.says("delete pod solo -n shop", "deleted");
    kubectl.says("wait --for=delete pod/solo -n shop --timeout=20s", "");
    kubectl.says("api-resources", "endpointslices");
    // What kubectl makes out of flags, it sends in another encoding.
    kubectl.says("create namespace flags", "namespace/flags created");
    let create = "create deployment d -n flags --image=x:1 --replicas=2 --port=80";
    kubectl.says(create, "deployment.apps/d created");
    kubectl.says("get deploy d -n flags -o jsonpath={.spec.replicas}", "2");
    kubectl.says(
        "expose deployment d -n flags --port=80",
        "service/d exposed",
    );
    kubectl.says(
        "create service nodeport n -n flags --tcp=80:web",
        "service/n created",
    );
    kubectl.says(
        "get svc n -n flags -o jsonpath={.spec.ports[0].targetPort}",
        "web",
    );
    kubectl.says(
        "create configmap c -n flags --from-literal=k=v",
        "configmap/c created",
    );
    kubectl.says(
        "create secret generic s -n flags --from-literal=k=hello",
        "secret/s created",
    );
    kubectl.says("get secret s -n flags -o jsonpath={.data.k}", "aGVsbG8=");
    kubectl.says(
        "create serviceaccount a -n flags",
        "serviceaccount/a created",
    );
    let patch = r#"patch svc web -n shop --type=merge -p {"spec":{"type":"NodePort"}}"#;
    kubectl.says(patch, "patched");
    kubectl.says("get svc web -n shop", "NodePort");
    let server = "apply --server-side --force-conflicts -f -";
    let applied = kubectl.run(server, &changed);
    assert!(
        applied.contains("service/web serverside-applied"),
        "{applied}"
    );
    let gone = kubectl.run("delete --timeout=30s -f -", APPLICATION);
    assert!(gone.contains("\"shop\" deleted"), "{gone}");
    let (found, text) = kubectl.try_run("get ns shop", "");
    assert!(!found && text.contains("NotFound"), "{text}");
}

#[test]
fn malformed_manifests_are_explained() {
    let Some(kubectl) = Kubectl::find() else {
        return;
    };
    let policy = |rule: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: a}}, \
             spec: {{podSelector: {{}}, ingress: [{rule}]}}}}"
        )
    };
    let table = [
        (
            policy("{from: [{ipBlock: {cidr: 10.0.0.0/99}}]}"),
            "spec.ingress[0].from[0].ipBlock.cidr",
        ),
        (
            policy("{ports: [{port: 80, endPort: 70}]}"),
            "must be greater than or equal to `port`",
        ),
        (
            policy("{form: []}"),
            "unknown field \"spec.ingress[0].form\"",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: x}]}}"
                .to_owned(),
            "spec.ports[0].port",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: A}, spec: {containers: []}}".to_owned(),
            "spec.containers",
        ),
    ];
    for (manifest, expected) in table {
        let (success, text) = kubectl.try_run("apply -f -", &manifest);
        assert!(!success && text.contains(expected), "{manifest}: {text}");
    }
}
