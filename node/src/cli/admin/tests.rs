//! The commands on the wire, and what a person reads.

use super::*;
use crate::cli::client::tests::answering;
use clap::Parser;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: AdminArgs,
}

fn args(line: &str) -> AdminArgs {
    Line::try_parse_from(["admin"].into_iter().chain(line.split_whitespace())).unwrap_or_else(|e| panic!("{e}")).args
}

fn command(line: &str) -> AdminCommand {
    args(line).command
}

fn nothing(_: &str) -> Option<String> {
    None
}

/// What is asked of the node, and what comes of an answer.
async fn asked(line: &str, answer: &str) -> (Result<Json, AdminError>, String) {
    let command = command(line);
    let key = resolve(&SecretRef::text("lea-key"), &nothing).unwrap();
    let work = async |url| carry_out(&Client { url, key: Some(key.clone()) }, &command).await;
    answering(answer, work).await
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn each_command_asks_for_one_thing() {
    let cases = [
        (
            "keys create web --tenant acme --model openai/* --rps 2 --rpm 5 --budget day --budget month",
            "POST /admin/v1/keys ",
            r#"{"name":"web","tenant":"acme","models":["openai/*"],"budgets":["day","month"],"rps":2,"rpm":5}"#,
        ),
        ("keys revoke a/b --cut --no-wait", "POST /admin/v1/keys/a%2Fb/revoke?wait=none ", r#"{"cut":true}"#),
        ("keys get web", "GET /admin/v1/keys/web ", ""),
        ("providers off openai", "POST /admin/v1/providers/openai/off ", ""),
        ("get model openai/gpt-4o", "GET /admin/v1/models/openai%2Fgpt-4o ", ""),
        ("put team acme/support {}", "PUT /admin/v1/tenants/acme/teams/support ", "{}"),
        (r#"put budget b {"limit":"$1"}"#, "PUT /admin/v1/budgets/b ", r#"{"limit":"$1"}"#),
        ("delete routes r --if-version 7", "DELETE /admin/v1/routes/r ", ""),
        ("drain edge-1", "POST /admin/v1/members/edge-1/drain ", ""),
        ("remove edge-1", "POST /admin/v1/members/edge-1/remove ", ""),
        ("audit --from 5", "GET /admin/v1/audit?from=5&limit=1000 ", ""),
    ];
    for (line, start, body) in cases {
        let (answer, request) = asked(line, &ok("{}")).await;
        assert!(answer.is_ok(), "{line}");
        assert!(request.starts_with(start), "{line}: {request}");
        assert!(request.contains("\r\nauthorization: Bearer lea-key\r\n"), "{request}");
        assert_eq!(request.split("\r\n\r\n").nth(1), Some(body), "{line}");
    }
    let (_, request) = asked("delete routes r --if-version 7", &ok("{}")).await;
    assert!(request.contains("\r\nif-match: \"7\"\r\n"), "{request}");
    let (_, request) = asked("put routes r {} --new", &ok("{}")).await;
    assert!(request.contains("\r\nif-none-match: *\r\n"), "{request}");
}

#[tokio::test]
async fn a_budget_is_asked_for_and_reconciled() {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BudgetArgs,
    }
    let standing = json!({
        "name": "b", "unit": "requests", "limit": 9, "window": 0, "starts": null, "ends": null, "settled": 4,
        "leased": 0, "burned": 0, "remaining_low": 5, "remaining_high": 5, "lines": [], "records": [],
        "period": "day", "given_back": 3, "note": "2 requests were said, and 4 requests had been reported",
    });
    let mut all = standing.clone();
    all["items"] = json!([standing]);
    let cases = [
        ("show b", "GET /admin/v1/budgets/b/standing ", "", "b\n  window     0\n  limit      9 requests"),
        ("show", "GET /admin/v1/standings?limit=1000 ", "", "name  limit             settled     leased      burned"),
        ("show b --window 3", "GET /admin/v1/budgets/b/standing?window=3 ", "", "b\n  window     "),
        ("show b --window 3 --end-user a&b", "GET /admin/v1/budgets/b/standing?window=3&end_user=a%26b ", "", "b\n"),
        (
            "reconcile b --node edge-1 --incarnation 12 --used 2 --window 0",
            "POST /admin/v1/budgets/b/reconcile ",
            r#"{"node":"edge-1","incarnation":12,"used":"2","window":0}"#,
            "3 requests given back; 2 requests were said, and 4 requests had been reported\nb\n",
        ),
    ];
    for (line, start, body, words) in cases {
        let args = Line::try_parse_from(["budget"].into_iter().chain(line.split_whitespace())).unwrap().args;
        let key = resolve(&SecretRef::text("lea-key"), &nothing).unwrap();
        let work = async |url| about_budget(&Client { url, key: Some(key.clone()) }, &args.command).await;
        let (answer, request) = answering(&ok(&all.to_string()), work).await;

        assert!(request.starts_with(start), "{line}: {request}");
        assert_eq!(request.split("\r\n\r\n").nth(1), Some(body), "{line}");
        let shown = budget_words(&args.command, answer.unwrap()).unwrap();
        assert!(shown.starts_with(words), "{line}: {shown}");
    }
    assert!(Line::try_parse_from(["budget", "show", "--window", "3"]).is_err(), "of which budget?");
}

#[tokio::test]
async fn a_refusal_is_told_whole() {
    let body =
        json!({ "error": { "code": "invalid", "message": "what was sent is not right", "request_id": "r", "problems": [
        { "path": "rpm", "message": "is 0" }, { "path": "", "message": "has neither" } ] } })
        .to_string();
    let answer = format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n{body}", body.len());

    let (refused, _) = asked("keys create web", &answer).await;

    let told = refused.unwrap_err().to_string();
    assert_eq!(told, "what was sent is not right (invalid)\n  rpm: is 0\n  has neither");
    let (foreign, _) = asked("members", "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    assert!(foreign.unwrap_err().to_string().starts_with("the node answered 404"));
    assert!(matches!(asked("members", &ok("<html>")).await.0, Err(AdminError::Foreign(_))));
}

#[test]
fn a_table_has_what_one_looks_for() {
    let answer = json!({ "items": [
        { "name": "web", "origin": "api", "version": 17, "revoked": false, "spec": { "tenant": "acme" } },
        { "name": "root", "origin": "file", "version": 3, "revoked": true, "spec": { "roles": ["admin", "viewer"] } },
    ] });
    assert_eq!(
        print::shown(&command("keys list"), &answer),
        "name  origin  version  tenant   team  roles         state\n\
         web   api     17       acme     -     -             -\n\
         root  file    3        default  -     admin,viewer  revoked"
    );
    let budgets = json!({ "items": [
        { "name": "b", "origin": "api", "version": 5, "spec": { "limit": "$50", "window": "month" } },
    ] });
    assert_eq!(
        print::shown(&command("list budgets"), &budgets),
        "name  origin  version  limit  window\n\
         b     api     5        $50    month"
    );
    let created = print::shown(&command("keys create web"), &json!({ "name": "web", "key": "lea-a-b" }));
    assert!(created.contains("\n  lea-a-b\n"), "{created}");
    let told = |waited: &str| print::shown(&command("keys revoke web"), &json!({ "waited": waited }));
    assert_eq!(told("every_node"), "key web is revoked, on every node");
    assert_eq!(told("skipped"), "key web is revoked; some nodes may not know yet");
    let members = json!({ "items": crate::admin::status::cluster::tests::cluster().members });
    assert!(print::shown(&command("members"), &members).contains("\nedge-1       ready  leader"), "{members}");
}

#[test]
fn the_key_is_found_where_it_is_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).display().to_string()
    };
    let data = folder.path().display().to_string();
    file(KEY_FILE, "from-the-data-directory\n");
    let other = file("other", "from-a-file\n");
    let config = file("g.yaml", &format!("node: {{ data_dir: {data} }}\nlisten: {{ admin: 0.0.0.0:9001 }}\n"));
    let homeless = file("homeless.yaml", "auth: none\n");
    let environment = |name: &str| (name == KEY_VARIABLE).then(|| "from-the-environment".to_owned());
    let found = |line: &str, lookup: environment::Lookup<'_>| {
        client(&args(&format!("{line} members")).reach, lookup)
            .map(|client| (client.key.map(|key| key.reveal().to_owned()).unwrap_or_default(), client.url.to_string()))
    };
    let key = |line: &str, lookup: environment::Lookup<'_>| found(line, lookup).unwrap().0;

    assert_eq!(key(&format!("--key-file {other} --data-dir {data}"), &environment), "from-a-file");
    assert_eq!(key(&format!("--data-dir {data}"), &environment), "from-the-environment");
    assert_eq!(key(&format!("--data-dir {data}"), &nothing), "from-the-data-directory");
    let (from_config, url) = found(&format!("-c {config}"), &nothing).unwrap();
    assert_eq!((from_config.as_str(), url.as_str()), ("from-the-data-directory", "http://127.0.0.1:9001/"));
    let (_, url) = found(&format!("-c {config} --admin http://edge-1:8081"), &nothing).unwrap();
    assert_eq!(url, "http://edge-1:8081/");
    assert!(matches!(found("", &nothing), Err(AdminError::NoKey)));
    assert!(matches!(found(&format!("-c {homeless}"), &nothing), Err(AdminError::NoDataDir { .. })));
    assert!(matches!(found("--key-file /nowhere", &nothing), Err(AdminError::Key(_))));
    let absent = found("--data-dir /nowhere", &nothing).unwrap_err();
    assert!(matches!(absent, AdminError::FirstKey(_)), "{absent}");
    assert!(absent.to_string().ends_with("in the data directory of the node that founded the cluster"), "{absent}");
}

#[test]
fn a_resource_is_read_from_where_it_is_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.json");
    std::fs::write(&path, r#"{ "targets": ["a/b"] }"#).unwrap();
    let spec = |spec: Option<&str>, file: Option<&Path>| {
        SpecArgs { spec: spec.map(ToOwned::to_owned), file: file.map(ToOwned::to_owned) }.read()
    };

    assert_eq!(spec(None, Some(&path)).unwrap()["targets"][0], "a/b");
    assert!(matches!(spec(Some("{"), None), Err(AdminError::SpecNotJson(_))));
    assert!(matches!(spec(None, Some(Path::new("/nowhere"))), Err(AdminError::Spec { .. })));
    std::fs::write(&path, vec![b' '; 1_048_577]).unwrap();
    assert!(matches!(spec(None, Some(&path)), Err(AdminError::SpecTooLarge)));
    for wrong in ["put routes r", "put routes r {} -f x", "put routes r {} --new --if-version 1", "list guards"] {
        let line = ["admin"].into_iter().chain(wrong.split_whitespace());
        assert!(Line::try_parse_from(line).is_err(), "{wrong}");
    }
    assert!(matches!(Which::Teams.path(Some("acme")), Err(AdminError::Team { .. })));
    assert!(matches!(Which::Teams.path(None), Err(AdminError::AllTeams)));
}

/// A long list is asked for page by page.
#[tokio::test]
async fn pages_are_put_together() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let pages = [r#"{"items":[{"name":"a"}],"next":"a/b"}"#, r#"{"items":[{"name":"c"}],"next":null}"#];
    let server = async {
        let mut asked = Vec::new();
        for page in pages {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = socket.read(&mut request).await.unwrap();
            asked.push(String::from_utf8_lossy(&request[..read]).lines().next().unwrap().to_owned());
            socket.write_all(ok(page).as_bytes()).await.unwrap();
        }
        asked
    };

    let client = Client { url, key: None };
    let (listed, asked) = tokio::join!(list(&client, "keys".to_owned(), "after"), server);

    assert_eq!(listed.unwrap()["items"], json!([{ "name": "a" }, { "name": "c" }]));
    assert_eq!(asked[1], "GET /admin/v1/keys?limit=1000&after=a%2Fb HTTP/1.1");
}
