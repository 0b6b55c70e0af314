"""Lists of phrases typical of adverts and page furniture (boilerplate), and a search for all of them at once.

    finder().counts(characters)     # hits of each group in each text

The lists are the project's own; their phrases are very rare in running text. A single phrase is no evidence:
`preprocess.cleaning.quality` requires several different ones, or a high share of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from preprocess.cleaning.characters import Characters

ADVERT = """
加微信 加我微信 微信号 微信扫码 添加微信 加薇信 加V信 加QQ 客服QQ 客服微信 在线客服 咨询热线 服务热线 订购热线
招商热线 加盟热线 免费咨询 立即咨询 点击咨询 欢迎来电 来电咨询 欢迎咨询 欢迎选购 欢迎订购 厂家直销 厂家直供 批发价格
价格优惠 量大从优 货到付款 全国包邮 限时抢购 限时优惠 限时特价 立即购买 点击购买 马上抢购 疯狂抢购 秒杀价 优惠券
领取优惠 招商加盟 诚招代理 招代理 加盟费 零风险 月入过万 日赚 轻松赚钱 兼职刷单 在家赚钱 快速致富 代开发票 开具发票
代办信用卡 信用卡套现 无抵押贷款 小额贷款 快速放款 当天放款 代办证件 办证刻章 刻章办证 私家侦探 博彩 百家乐 真人娱乐
娱乐城 澳门赌场 时时彩 六合彩 彩票平台 注册送 首充送 开户送 老虎机 网上赌博 棋牌游戏平台 体育投注 一夜情 特殊服务
同城约 壮阳 增大增粗 迷药 春药 减肥茶 祛斑霜 丰胸 无效退款 包治 根治 专业代写 论文代写 代写论文 代发论文 刷信誉 刷单
网站优化排名 快速排名 百度排名 关键词排名 友情链接交换 私服发布 外挂下载 传奇私服 特价机票 旗舰店 正品保证 假一赔十
七天无理由 点击链接 复制链接 扫描二维码 扫码关注 长按识别 关注公众号 关注我们的公众号
""".split()

FURNITURE = """
版权所有 保留所有权利 未经授权 ICP备 公网安备 网站地图 联系我们 关于我们 设为首页 加入收藏 收藏本站 返回首页
返回顶部 返回列表 上一篇 下一篇 上一页 下一页 相关阅读 相关文章 相关推荐 推荐阅读 热门推荐 猜你喜欢 最新文章
热门文章 阅读全文 查看更多 查看全文 点击查看 点击进入 点击这里 点击下载 立即下载 免费下载 分享到 转发到 分享至
责任编辑 免责声明 隐私政策 服务条款 用户协议 友情链接 登录注册 用户登录 立即登录 立即注册 免费注册 忘记密码 请先登录
登录后 发表评论 我要评论 网友评论 暂无评论 发表回复 回复本楼 举报 您的位置 当前位置 您现在的位置 站内搜索 技术支持
举报电话 网站备案 手机版 手机访问 客户端下载 扫一扫 广告服务 广告位 投稿邮箱 浏览次数 点击次数 阅读次数 发布时间
发布日期 来源： 作者： 编辑： 收藏 点赞 打印本页 关闭窗口 本站声明 侵权删除 如有侵权 沪ICP 京ICP 您的浏览器
浏览器不支持 请启用 JavaScript 页面不存在 正在加载 加载中 跳转中 帮助中心 新手指南 购物车 我的订单 会员中心
""".split()

GARBAGE = "锟斤拷 烫烫烫 屯屯屯 锘锘 ï¿½ Ã¤ Ã¥ Ã¦ Ã¨ Ã© â€ ä¸ å› æ˜ ç” &nbsp; &amp; &#".split()

GROUPS = {"advert": ADVERT, "furniture": FURNITURE, "garbage": GARBAGE}
_BUCKETS = 1 << 16


@dataclass(frozen=True)
class Finder:
    """Phrases indexed by their first two characters; `candidates` marks the hashes of pairs that begin a phrase."""

    candidates: np.ndarray  # bool [65536]
    by_pair: dict[int, list[tuple[int, int, list[int]]]]  # pair -> (group, phrase number, code points)

    def find(self, characters: Characters) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All hits as four arrays of equal length: text, group, number of the phrase, length of the phrase."""
        codes = characters.codes
        pairs = (codes[:-1] * np.uint32(31) + codes[1:]) & np.uint32(_BUCKETS - 1)
        places = np.flatnonzero(self.candidates[pairs])
        texts = np.searchsorted(characters.starts, places, side="right") - 1
        hits: list[tuple[int, int, int, int]] = []
        found_at = np.stack([places, texts, codes[places], codes[places + 1]], axis=1)
        for place, text, first, second in found_at.tolist():
            for group, number, phrase in self.by_pair.get(first << 32 | second, ()):
                if len(phrase) == 2 or codes[place : place + len(phrase)].tolist() == phrase:
                    hits.append((text, group, number, len(phrase)))
        found = np.array(hits, dtype=np.int64).reshape(-1, 4)
        return found[:, 0], found[:, 1], found[:, 2], found[:, 3]

    def counts(self, characters: Characters) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each group: number of different phrases, and of characters covered by all hits; both of shape [texts]."""
        texts, groups, numbers, lengths = self.find(characters)
        counted = {}
        for index, group in enumerate(GROUPS):
            mine = groups == index
            different = np.unique(np.stack([texts[mine], numbers[mine]], axis=1), axis=0)[:, 0]
            covered = np.bincount(texts[mine], weights=lengths[mine], minlength=characters.count)
            counted[group] = np.bincount(different, minlength=characters.count), covered
        return counted


@cache
def finder() -> Finder:
    candidates: np.ndarray = np.zeros(_BUCKETS, dtype=bool)
    by_pair: dict[int, list[tuple[int, int, list[int]]]] = {}
    number = 0
    for group, phrases in enumerate(GROUPS.values()):
        for phrase in phrases:
            codes = [ord(c) for c in phrase]
            candidates[(codes[0] * 31 + codes[1]) & (_BUCKETS - 1)] = True
            by_pair.setdefault(codes[0] << 32 | codes[1], []).append((group, number, codes))
            number += 1
    return Finder(candidates, by_pair)
