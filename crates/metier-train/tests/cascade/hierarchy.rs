//! Labels that are paths: figures by depth, and answers that fall back to the node that is sure.

use metier_model::specialist::manifest::Manifest;

use super::*;

const NODES: [(&str, [&str; 3], [&str; 3]); 4] = [
    ("billing/refund", ["invoice", "amount", "bank"], ["refund", "back", "return"]),
    ("billing/charge", ["invoice", "amount", "bank"], ["charged", "twice", "debit"]),
    ("delivery/late", ["parcel", "courier", "address"], ["late", "waiting", "delayed"]),
    ("delivery/lost", ["parcel", "courier", "address"], ["lost", "vanished", "stolen"]),
];

/// `n` rows; all say which branch they are of, three in four also which leaf, and one in fifty has the label of another.
fn paths(n: u64, from: u64) -> String {
    let mut csv = "text,label\n".to_owned();
    for i in 0..n {
        let mut state = mix(from + i);
        let mut pick = |n: u64| {
            state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
            (state % n) as usize
        };
        if pick(8) == 0 {
            csv += &format!("thanks lovely {},praise\n", from + i);
            continue;
        }
        let (label, branch, leaf) = NODES[pick(4)];
        let mut text = vec![branch[pick(3)], branch[pick(3)]];
        if pick(4) > 0 {
            text.extend([leaf[pick(3)], leaf[pick(3)]]);
        }
        let label = if pick(50) == 0 { NODES[pick(4)].0 } else { label };
        csv += &format!("{} {},{label}\n", text.join(" "), from + i);
    }
    csv
}

fn tree(data: &str, target: &str) -> Bench {
    let bench = Bench::new("");
    fs::write(bench.dir.path().join("train.csv"), paths(3000, 0)).unwrap();
    fs::write(bench.dir.path().join("test.csv"), paths(500, 1 << 20)).unwrap();
    let task = format!(
        "name = \"topics\"\nkind = \"classify\"\n[data]\ntrain = \"train.csv\"\ntest = \"test.csv\"\n{data}\n[target]\nepsilon = 0.05\n{target}"
    );
    fs::write(bench.dir.path().join("task.toml"), task).unwrap();
    bench
}

const SLASH: &str = "hierarchy = \"/\"";

#[test]
fn an_answer_that_is_not_sure_of_the_leaf_falls_back_to_its_parent() {
    let bench = tree(SLASH, "fall_back = true");
    let outcome = bench.build(None);
    let specialist = Specialist::open(&outcome.path).unwrap();
    let Manifest { hierarchy, certificate, .. } = specialist.manifest();
    let levels = &hierarchy.as_ref().unwrap().levels;
    assert_eq!(levels.iter().map(|level| level.depth).collect::<Vec<_>>(), [1]);
    let (certificate, share) = (certificate.unwrap(), levels[0].share.unwrap());
    assert!(outcome.held.unwrap() && share.coverage > 0.1 && certificate.coverage > share.coverage + 0.4, "{share:?}");
    // A quarter of the rows of a branch do not say which leaf; of those half are right by chance.
    let figures = outcome.evaluation.hierarchy.as_ref().unwrap();
    let [top, leaves] = figures.levels.as_slice() else { panic!("{figures:?}") };
    assert_eq!((top.nodes, leaves.nodes, leaves.accuracy), (3, 5, outcome.evaluation.accuracy));
    assert!(top.accuracy.value > 0.95 && leaves.accuracy.value < 0.93, "{figures:?}");
    assert!(figures.f1.value > leaves.accuracy.value && figures.f1.value < top.accuracy.value, "{figures:?}");
    let stages = &outcome.evaluation.stages;
    assert_eq!(stages.iter().map(|stage| stage.name()).collect::<Vec<_>>(), ["linear", "linear, level 1"]);
    assert!(stages[1].answered.value > 0.1 && stages[1].right.value > 0.9, "{stages:?}");
    assert_eq!(stages.iter().map(|stage| stage.losses).sum::<u64>(), outcome.evaluation.test_loss.unwrap().losses);

    let ask = |text: &str| specialist.answer(text, None).unwrap();
    let leaf = ask("invoice bank refund return");
    assert_eq!((leaf.label.as_str(), leaf.level(), leaf.accepted), ("billing/refund", None, true));
    let parent = ask("invoice bank amount");
    assert_eq!((parent.label.as_str(), parent.level(), parent.accepted), ("billing", Some(1), true));
    assert!(parent.fits("billing/charge") && !parent.fits("billings") && !leaf.fits("billing/charge"));
    for row in specialist.probe() {
        let answer = ask(&row.text);
        assert_eq!((&answer.label, answer.score), (&row.label, row.score));
    }
    let text = ["text".to_owned()];
    let file = bench.dir.path().join("test.csv");
    let report =
        evaluate(&specialist, None, &bench.pool, &file, &Columns::new(&text, "label"), 7, &mut silent).unwrap();
    assert_eq!(report.hierarchy, outcome.evaluation.hierarchy);
    assert_eq!((report.stages, report.test_loss), (outcome.evaluation.stages.clone(), outcome.evaluation.test_loss));
    assert_eq!(bench.build(None).bundle, outcome.bundle);
    let read = |file: &str| fs::read_to_string(outcome.path.join(file)).unwrap();
    assert!(read("CARD.md").contains("linear, level 1") && read("report.html").contains("hierarchical F1"));

    // Without it more is deferred.
    let bench = tree(SLASH, "");
    let whole = bench.build(None);
    let opened = Specialist::open(&whole.path).unwrap();
    assert!(opened.manifest().hierarchy.as_ref().unwrap().levels.is_empty() && whole.evaluation.stages.is_empty());
    assert!(whole.evaluation.hierarchy.is_some());
    assert!(whole.test_coverage < outcome.test_coverage - 0.05, "{} {}", whole.test_coverage, outcome.test_coverage);
    assert!(!opened.answer("invoice bank amount", None).unwrap().accepted);
}

#[test]
fn refuses_labels_that_are_no_paths() {
    let check = |data: &str, target: &str, message: &str| {
        let bench = tree(data, target);
        let task = TaskFile::read(&bench.dir.path().join("task.toml"), &|_| None).map_err(|error| error.to_string());
        let (pool, store, tuning) = (&bench.pool, &bench.store, Tuning::default());
        let work = Workbench { encoder: None, pool, store, seed: 7, tuning, decoders: Vec::new(), teacher: None };
        let built = task
            .and_then(|task| build(&task, &work, &mut silent, &|| Duration::ZERO).map_err(|error| error.to_string()));
        let error = built.map(|outcome| outcome.value).unwrap_err();
        assert!(error.contains(message), "`{error}` does not contain `{message}`");
    };
    check("hierarchy = \"::\"", "", "no label has a `::`");
    check("", "fall_back = true", "`data.hierarchy` must say what separates them");
    check("hierarchy = \"billing/\"", "", "has an empty part between its `billing/`");
}

#[test]
fn tampered_trees_are_refused() {
    let whole = Specialist::open(&tree(SLASH, "fall_back = true").build(None).path).unwrap().into_contents();
    let check = |change: &dyn Fn(&mut Contents), message: &str| {
        let mut contents = whole.clone();
        change(&mut contents);
        let dir = tempfile::tempdir().unwrap();
        bundle::write(&contents, dir.path()).unwrap();
        let error = bundle::read_unnamed(dir.path()).unwrap_err().to_string();
        assert!(error.contains(message), "`{error}` does not contain `{message}`");
    };
    fn level(contents: &mut Contents) -> &mut metier_model::specialist::hierarchy::Level {
        &mut contents.manifest.hierarchy.as_mut().unwrap().levels[0]
    }
    check(&|contents| level(contents).depth = 2, "not those of its labels");
    check(&|contents| level(contents).share = None, "has no part in it");
    check(&|contents| contents.manifest.certificate = None, "without a certificate for the whole");
    check(&|contents| level(contents).line.slope = -1.0, "not monotone");
    check(&|contents| level(contents).share.as_mut().unwrap().threshold = 7.0, "no probability");
    check(&|contents| contents.manifest.hierarchy.as_mut().unwrap().separator = "#".to_owned(), "no paths");
}

/// The shipped example of a tree is what its README says, and its n-gram rung finds trades more often than whole paths.
#[test]
fn the_shipped_tree_is_what_it_says() {
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/repair-requests");
    let task = TaskFile::read(&example.join("task.toml"), &|_| None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = SpecialistStore::open(&dir.path().join("store")).unwrap();
    let (pool, tuning) = (Pool::new(2, Tier::detect()), Tuning::default());
    let bench =
        Workbench { encoder: None, pool: &pool, store: &store, seed: 0, tuning, decoders: Vec::new(), teacher: None };
    let plan = metier_train::plan(&task, &bench, &|| Duration::ZERO).unwrap();
    let expected = [("calibration", 100), ("test", 80), ("train", 240), ("validation", 60)];
    assert_eq!(plan.rows, expected.map(|(part, n)| (part.to_owned(), n)).into());
    assert_eq!((plan.labels.len(), plan.leak.removed, plan.leak.contradictions), (20, 0, 0));
    assert!(plan.labels.values().all(|parts| parts["train"] == 12 && parts["test"] == 4), "{:?}", plan.labels);
    let readme = fs::read_to_string(example.join("README.md")).unwrap();
    assert!(plan.labels.keys().all(|label| readme.contains(&format!("`{label}`"))), "the README defines every path");
    let outcome = build(&task, &bench, &mut silent, &|| Duration::ZERO).unwrap();
    let levels = &outcome.evaluation.hierarchy.as_ref().unwrap().levels;
    assert_eq!(levels.iter().map(|level| level.nodes).collect::<Vec<_>>(), [5, 16, 20]);
    assert!(levels[0].accuracy.value > levels[2].accuracy.value + 0.05, "{levels:?}");
}
