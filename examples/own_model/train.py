"""Train RecentItems on ml-100k, which RecBole brings along: python train.py"""

from recent_items import RecentItems

from recbole_sigma import load_data_and_model, run

if __name__ == "__main__":
    result = run(RecentItems, "ml-100k", config_dict={"decay": 0.8, "epochs": 5})
    print(result.test_result)
    config, model, *_ = load_data_and_model(result, model=RecentItems)
    print(model.decay == config["decay"])
