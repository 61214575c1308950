"""Words for `fuzz_cases.py`: what has been typed wrongly, and what might be taken for something else."""

CANARY = "touched-by-a-value"  # the file that code in a value would make

# Cells that are numbers, or nearly.
NUMBERS = [
    "0", "-1", "1e400", "-1e400", "nan", "NaN", "inf", "-inf", "Infinity", "1e308", "9223372036854775808", "0x10",
    "18446744073709551616", "99999999999999999999999999", "1_000", "1,5", " 7", "7 ", "+3", "1e-320", ".5", "5.",
    "١٢", "", " ", "NA", "null", "None", "True", "1.7976931348623157e309", "--1", "1e", "e1", "#N/A", "<NA>", "-0.0",
]  # fmt: skip

# Cells of text.
TOKENS = [
    "", " ", '"', '"a', 'a"b"c', "'", "[PAD]", "nan", "NA", "None", "null", "0", "007", "7", "é", "日本", "\u202e",
    "\u200b", "\x0b", "\x0c", "\x1c", "\u2028", "\x85", "\ufeff", "a b", "a,b", "a:b", "#", "\\", "\\t", "=1+1",
    "x" * 300, "y" * 200_000, "../../etc", "a/b", "%s", "{}", "\x7f", "1e5", "-", "😀", "e\u0301",
]  # fmt: skip

# Titles of columns.
HEADERS = [
    "user_id", "user_id:", ":token", ":", "", "user_id:tokens", "user_id:TOKEN", "user_id:token:token",
    "userid:token", "item_id:float", "timestamp:token", "timestamp:token_seq", "user_id:token_seq", "item_id:token",
    "rating:float", "label:float", "item_id_list:token", "item_length:float", "neg_item_id:token",
    "user_id_list:token", "x:float_seq", "x:token_seq", "timestamp_list:float_seq", " user_id:token",
    "user_id :token", '"user_id:token"', "[PAD]:token",
]  # fmt: skip

# What must never run.
CODE = [
    f"__import__('os').system('touch {CANARY}')", f"!!python/object/apply:os.system ['touch {CANARY}']",
    f"open('{CANARY}', 'w')", f"$(touch {CANARY})", f"`touch {CANARY}`", "!!python/name:os.system",
    "!!python/module:os", f"{{__class__: !!python/tuple [touch, {CANARY}]}}", "!!binary aGk=", "!!set {a, b}",
]  # fmt: skip

# Words that settings hold.
NAMES = [
    "1e3", "010", "12:30", "yes", "~", "=", "<<", "0x1F", "2024-01-01", ".5", "-",
    "user_id", "item_id", "timestamp", "rating", "class", "item_id_list", "item_length", "label", "inter", "item",
    "user", "LS", "RS", "CV", "valid_and_test", "TO", "RO", "full", "uni100", "pop100", "labeled", "valid", "test",
    "uniform", "popularity", "none", "NDCG", "ndcg@10", "Hit@5", "Recall", "AUC", "max_norm", "norm_type", "method",
    "ED", "LD", "bucket", "adam", "sgd", "sparse_adam", "cpu", "cuda", "0", "0,1", "paper", "length", "utf-8", "*",
    "first", "last", "true", "us_x", "un", "su", "mask_itemseq", "inverse_itemseq", "crop_itemseq", "user_defined",
    "[0,inf)", "[5,1]", "(a,b)", "[", "()", ";", "[1,2,3]", "[0,inf);[3,4]", "DEBUG", "debug", "CE", "BPR", "BCE",
]  # fmt: skip

# Files of settings.
YAML_FAULTS = [
    "a: [1, 2\n", "epochs: 1\nepochs: 2\n", "a: &x [1]\nb: *x\n", "- 1\n", "text\n", "? [a]\n: 1\n",
    "a: 1\n---\nb: 2\n", "a: '\x07'\n", "\tepochs: 1\n", "epochs:1\n", "epochs: !!int '1'\n",
    "%YAML 9.9\n---\nepochs: 1\n", "{epochs: 1\n", "<<: {seed: 1}\n",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c]\n",
    "epochs: " + "[" * 5000, "epochs: " + "{a: " * 3000, "\ufeffepochs: 1\n", "é: 1\n", "null: 1\n", "1.5: 2\n",
    "true: 1\n", "epochs: |\n  1\n", "epochs: >\n", "'epochs': 1\n", "epochs: 1 # \x00\n", "\x00", "...\n",
    "---\n...\n---\n", "\xff\xfe", "seed: 0x10\n", "seed: 1_000\n", "seed: 12:30:45\n", "seed: 2024-01-01\n",
    "seed: 0o7\n", "epochs: " + "1" * 5000 + "\n", "x" * 100_000 + ": 1\n", "epochs: " + "y" * 100_000 + "\n",
    "config_files: base.yaml\n", "model: [SIGMA]\n", "dataset: {a: 1}\n",
]  # fmt: skip

# Arguments.
WORDS = [
    "train", "models", "--help", "-h", "--version", "--", "-", "--model=SIGMA", "--model=sigma", "--model", "SIGMA",
    "GRU4Rec", "sequence", "by_length", "--items=5", "--items", "--items=0", "--items=-1",
    "--items=1000000000000000000", "--items=x", "--epochs=1", "--epochs", "--=1", "=", "--a=b=c", "--config_files=",
    "--config_files=base.yaml", "--config_files=[base.yaml]", "--config_files={a: 1}", "--config_files=dataset",
    "--config_files=.", "--config_files=[[1]]", "--config_files=/dev/zero", "--config_files=/dev/null",
    "--dataset=tiny", "--dataset=", "--dataset=.", "--dataset=..", "--dataset=../dataset/tiny", "--dataset=tiny/",
    "--dataset=/dev/null", "--dataset=a\nb", "--data_path=dataset", "--data_path=", "--data_path=base.yaml",
    "--data_path=nowhere", "--checkpoint_dir=base.yaml", "--checkpoint_dir=", "--checkpoint_dir=a/b/c",
    "--checkpoint_dir=/proc/nowhere", "--model=DIEN", "--model=BERT4Rec", "--model=KSR", "--model=GRU4RecF",
    "--model=S3Rec", "--model=Caser", "--model=__class__", "--model=os", "--model=nn", "-x", "--items=9" + "9" * 5000,
    "--model=TransRec", "--model=NARM", "--model=SRGNN", "--model=FPMC", "--model=SHAN", "--model=HGN",
    "--model=FOSSIL", "--model=STAMP", "--model=NPE", "--model=HRM", "--model=RepeatNet", "--model=SINE",
    "--model=CORE", "--model=LightSANs", "--model=NextItNet", "--model=GCSAN", "--model=SASRecF", "--model=FDSA",
    "--model=GRU4RecKG", "--model=DIN", "--model=SASRecCPR", "--dataset=ml-1m", "--dataset=" + "d" * 5000,
    "--" + "k" * 100_000 + "=1", "--epochs=" + "1" * 10_000, "train=1", "\udcff",
]  # fmt: skip

# What `_bytes` does to a file.
BYTES = [
    "bom", "crlf", "cr", "nul", "not utf-8", "cut", "utf-16", "empty", "newline", "zlib", "commas", "no end",
    "spaces", "any", "control", "surrogate", "huge line",
]  # fmt: skip

# Settings that RecBole's lists leave out.
MORE_KEYS = [
    "num_layers", "n_layers", "n_heads", "dropout_prob", "hidden_dropout_prob", "attn_dropout_prob", "hidden_act",
    "layer_norm_eps", "d_conv", "expand", "r", "form", "flip", "ssm_init", "share_mamba", "ds_gate", "partial_flip",
    "gate_dropout", "fe_gru", "fe_conv", "initializer_range", "mask_ratio", "ft_ratio", "transform", "global_ratio",
    "dual_domain", "spatial_ratio", "std", "topk_factor", "contrast", "sim", "tau", "lmd", "lmd_sem", "fredom",
    "fredom_type", "by_length", "length_ratio", "worker", "shuffle", "nproc", "require_pow", "enable_amp",
    "enable_scaler", "wandb_project", "save_dataloaders", "dataloaders_save_path", "discretization", "kg_reverse_r",
    "entity_kg_num_interval", "tail_ratio", "reg_weight", "use_filter", "local_rank", "world_size", "offset", "ip",
    "port", "model", "resume",
]  # fmt: skip
